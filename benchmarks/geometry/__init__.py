"""Where voxels lie: ours beside SimpleITK, dcm2niix and MONAI's reader: `python -m benchmarks.geometry`."""
