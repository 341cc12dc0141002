"""The runner of MONAI bundles by the name that the model child knows it by; it lives in `bundles`."""

from meddaemon.inference.bundles.session import Prepared, Session, load

__all__ = ["Prepared", "Session", "load"]
