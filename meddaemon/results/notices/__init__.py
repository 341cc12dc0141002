"""Telling others that a result is where it was to go, each way in a file of its own."""
