"""Bundles whose inference is a class of Python (MONAI's `PythonicWorkflow`) instead of a configuration.

The class is found by reading its source, and becomes a configuration of four parts that ask it for its own; from there
on such a bundle is like any other. Nothing of it is run here.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BASES = frozenset({"PythonicWorkflow", "BundleWorkflow"})
WORKFLOW = "meddaemon.inference.bundles.workflow.Workflow"
MAXIMUM_CODE_BYTES = 2**20


def find_workflow(bundle: Path) -> tuple[str, str] | None:
    """Return the dotted name of the one class that is an inference workflow, and its file; None where there is none.

    Of several the one whose name says that it infers. Raises ValueError where that does not decide.
    """
    found = list(_workflows(bundle))
    inferring = [each for each in found if "infer" in each[0].lower()] if len(found) > 1 else found
    if found and len(inferring) != 1:
        raise ValueError(f"the bundle has several workflows: {', '.join(name for name, _ in found)}")
    return inferring[0] if inferring else None


def configuration(name: str) -> dict[str, Any]:
    """Return the configuration that takes the parts of an inference from the workflow of that name."""
    parts = {"network": "network_def", "preprocessing": "preprocessing", "inferer": "inferer"}
    return {
        "bundle_root": ".",
        "output_dir": "",
        "dataset_dir": "",
        "device": "cpu",
        "workflow": {
            "_target_": WORKFLOW,
            "name": name,
            "bundle_root": "@bundle_root",
            "device": "@device",
            "scratch": "@output_dir",
        },
        **{key: f"$@workflow.part('{part}')" for key, part in parts.items()},
        "postprocessing": "$@workflow.part('postprocessing', savers=False)",
    }


def _workflows(bundle: Path) -> Iterator[tuple[str, str]]:
    scripts = bundle / "scripts"
    for path in sorted(scripts.rglob("*.py")) if scripts.is_dir() else ():
        if not path.is_file() or path.stat().st_size > MAXIMUM_CODE_BYTES:
            continue
        module = ".".join(path.relative_to(bundle).with_suffix("").parts).removesuffix(".__init__")
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):
            # What cannot be read cannot be run either; who asks for it is told when it is loaded.
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any(_last(base) in BASES for base in node.bases):
                yield f"{module}.{node.name}", path.relative_to(bundle).as_posix()


def _last(base: ast.expr) -> str:
    """Return the last part of the name of a base class."""
    return base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""
