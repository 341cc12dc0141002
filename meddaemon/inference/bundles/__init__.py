"""Runs MONAI bundles as they are published, on volumes, pictures and waveforms in memory.

    reading ─> shims ─> edges ─> ConfigParser ─> weights ─> session: prepare, infer ─> outputs

A bundle is a folder with `configs/inference.json`, or with a workflow in Python. Only its edges are replaced: loaders
take what was assembled and checked, savers are left out, and paths, device and weights are ours. What lies between runs
unchanged.

`reading`, `pythonic`, `terms`, `shims`, `edges` and `kinds` do without torch; the rest is for the model child alone.
"""
