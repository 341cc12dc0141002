"""Where the installed weights lie, for running this bundle without meddaemon (which hands the paths in, checked)."""

import importlib.metadata

FILES = ("data/models/bbox_model.pt", "data/models/model.pt")


def installed() -> list[str]:
    """Return the paths of the coarse and the fine TorchScript model that the PyPI package `deepbet` carries.

    Raises `importlib.metadata.PackageNotFoundError` or `FileNotFoundError`.
    """
    carried = {file.as_posix(): str(file.locate()) for file in importlib.metadata.files("deepbet") or ()}
    missing = [name for name in FILES if name not in carried]
    if missing:
        raise FileNotFoundError(f"the package deepbet carries no {' and no '.join(missing)}")
    return [carried[name] for name in FILES]
