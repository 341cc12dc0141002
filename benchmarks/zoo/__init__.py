"""Runs every bundle of a copy of MONAI's model zoo, and says of each whether it loads, runs, and puts things right."""
