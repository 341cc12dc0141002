"""Our loader beside SimpleITK, pydicom, dcm2niix and GDCM: `python -m benchmarks.loading`."""
