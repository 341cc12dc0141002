"""What cannot run here, and why, from the configuration alone: said when a model is added, and before it is loaded."""

import ast
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from meddaemon.inference.bundles.edges import LOADER, SAVER
from meddaemon.inference.bundles.pythonic import WORKFLOW
from meddaemon.inference.bundles.reading import Reading, code, components, target, texts

WHOLE_SLIDE = re.compile(r"WSIReader|\w*WSI\w*")
_EVALUATION = re.compile(r"\b(\w*Evaluator(?=\()|iteration_update(?=\s*=)|prepare_batch(?=\s*=))")
_LOADS = re.compile(r"\bLoadImage(d|D|Dict)?\b")
PACKAGES: Mapping[str, str] = {
    # What MONAI asks for when a part of this name is made: import name -> pattern.
    "einops": r"SwinUNETR|UNETR|ViT\w*|UNesT|CrossAttention\w*|PatchEmbeddingBlock",
    "nibabel": r"Orientation(d|D|Dict)?",
    "skimage": r"KeepLargestConnectedComponent(d|D|Dict)?|HoVerNet\w*|RemoveSmallObjects(d|D|Dict)?",
    "ignite": r"\w*Evaluator",
    "torchvision": r"TorchVision\w*|RetinaNet",
}
NAMES: Mapping[str, str] = {
    # Packages that are not called what is imported.
    "skimage": "scikit-image",
    "ignite": "pytorch-ignite",
    "yaml": "PyYAML",
    "sklearn": "scikit-learn",
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
}


def obstacles(reading: Reading) -> list[str]:
    """Return why a bundle cannot run here, one reason each; empty when nothing is known against it."""
    # Savers are left out: what they need is needed by nobody.
    parts = [part for _, part in components(reading.config) if not SAVER.fullmatch(target(part))]
    if any(WHOLE_SLIDE.fullmatch(target(part)) for part in parts) or any(
        "WSIReader" in text for text in texts(reading.config)
    ):
        return ["the bundle works on whole-slide images, which are no DICOM series here"]
    if not any(LOADER.fullmatch(target(part)) for part in parts) and not any(map(_LOADS.search, code(reading))):
        own = [part["_target_"] for part in parts if target(part).startswith("Load")]
        reads = f", and it reads its own by {own[0]}" if own else ""
        return [f"the bundle takes no image: there is no LoadImage in its configuration{reads}"]
    if more := sorted(set(_own_evaluation(reading))):
        return [f"the workflow of the bundle does more than run its parts: {', '.join(more)}"]
    datasets = (part for part in parts if target(part).endswith("Dataset"))
    if "preprocessing" not in reading.config and not any("transform" in part for part in datasets):
        return ["the bundle takes no image: there is nothing that would prepare one in its configuration"]
    return [f"the bundle needs the package {NAMES.get(name, name)}" for name in sorted(set(_missing(reading, parts)))]


def _own_evaluation(reading: Reading) -> Iterator[str]:
    """Yield what a workflow in Python does beyond running its parts one after the other, as MONAI's evaluator does."""
    if target(reading.config.get("workflow") or {}) != WORKFLOW.rpartition(".")[2]:
        return
    for text in code(reading):
        yield from (name for name in _EVALUATION.findall(text) if name != "SupervisedEvaluator")


def _missing(reading: Reading, parts: list[dict[str, Any]]) -> Iterator[str]:
    own = {path.stem for path in reading.root.iterdir()} if reading.root.is_dir() else set()
    for name, pattern in PACKAGES.items():
        if any(re.fullmatch(pattern, target(part)) for part in parts) and not _installed(name):
            yield name
    for part in parts:
        name = str(part["_target_"]).partition(".")[0]
        if "." in part["_target_"] and name not in own and not _installed(name):
            yield name
    for text in texts([reading.config.get(key) for key in ("imports", "import", "initialize")]):
        yield from (name for name in _imported(text) if name not in own and not _installed(name))


def _imported(text: str) -> Iterator[str]:
    """Yield the packages that an import statement of a configuration names; nothing for anything else."""
    if not text.startswith("$"):
        return
    try:
        statements = ast.parse(text[1:]).body
    except SyntaxError:  # an expression with references
        return
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module.partition(".")[0]


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
