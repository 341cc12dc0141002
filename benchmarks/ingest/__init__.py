"""Receivers measured side by side: ours, DCMTK, Orthanc and pynetdicom under one sender.

`python -m benchmarks.ingest --help` in the root of the checkout.
"""
