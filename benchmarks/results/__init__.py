"""What it costs to write segmentations and to look at them once more."""
