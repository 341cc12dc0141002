"""Code of the bundle `brain_volume`; MONAI bundles call this package `scripts`."""
