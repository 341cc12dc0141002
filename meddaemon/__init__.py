"""A DICOM batch daemon: receives studies, runs MONAI bundles, returns standard SR and SEG."""

__version__ = "0.1.0"
