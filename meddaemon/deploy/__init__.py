"""Deployment of models: taking bundles in, looking at them without running them, and checking that they are right."""
