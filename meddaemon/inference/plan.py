"""How one run of a model is carried out: decided by the worker, which knows the memory, followed by the child."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What may be changed about a run so that it needs less memory, its result staying the same.

    `window_batch` is how many windows go through the network at once, None as the bundle says. `outputs_on_host`
    keeps what is stitched together in the memory of the host when the network runs on a GPU. `class_by_class` takes
    the channels of the output one after the other through whatever follows the network.
    """

    window_batch: int | None = None
    outputs_on_host: bool = False
    class_by_class: bool = False

    def message(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Self:
        """Return the plan that `message` made these values of."""
        batch = message["window_batch"]
        return cls(
            window_batch=None if batch is None else int(batch),
            outputs_on_host=bool(message["outputs_on_host"]),
            class_by_class=bool(message["class_by_class"]),
        )


AS_SHIPPED = RunPlan()
"""The bundle's own way."""


# --- what a run takes -----------------------------------------------------------------------------------------------

GROUP_BYTES = 2**28
"""Classes are taken to another grid together up to so much: smaller groups would only be slower."""
PLACES_BYTES = 40
"""For a voxel: its coordinates before and after they are mapped, in double precision, less those that go on living."""
_SMALL_BYTES = 2**26
"""Weights of a window, pieces, what libraries keep."""


def group(voxels: int, seen: int) -> int:
    """Return how many classes to take to another grid together: of so many voxels there, and `seen` where they are.

    In double precision and back, each takes 12 bytes for a voxel there and 8 where it is. As many as do not take more
    than the places to look at, which torch computes anew each time, take by themselves.
    """
    return max(1, max(GROUP_BYTES, PLACES_BYTES * voxels) // max(1, 12 * voxels + 8 * seen))


def peak_bytes(
    source: Sequence[int],
    image: Sequence[int],
    classes: int,
    *,
    window: Sequence[int] = (),
    window_batch: int = 1,
    plan: RunPlan = AS_SHIPPED,
) -> int:
    """Return what a run takes of the host at most, in bytes, beyond the loaded network and what its layers take.

    `source` and `image` are the lengths of the axes in voxels of the source and as the network sees it, `window` those
    of one window, empty without windows. For a bundle in the manner of the zoo: `Spacingd` before the network, then
    probabilities, inverted, of which the highest is chosen; one that chooses on the grid of the network takes less,
    and class by class hardly more than what comes before the network.

    Measured with the private memory of real children (`tests/inference/test_many_classes.py`), for S voxels of the
    source, V of the image and C classes. MONAI moves voxels in double precision, by coordinates that take 32 bytes
    for a voxel before they are mapped, and 24 after:

        before the network   24 S (input, image, turned, and as doubles) + 56 V
        windows              4 CV (stitched) + 12 V (image, counts), 8 for each number that leaves the network
        as shipped           C (16 V + 8 S) (logits, probabilities, these as doubles, moved as doubles), or
                             C (8 V + 12 S) while these become floats again; 24 S for coordinates; and one label
        class by class       4 CV; 56 S for coordinates, or 24 S and so many classes at a time as `group` says; and
                             the best so far, its label and the result, 24 S + 8 V
    """
    there, seen = prod(source), prod(image)
    before = 24 * there + 56 * seen
    windows = 4 * classes * seen + 12 * seen + 8 * classes * window_batch * prod(window or (0,))
    if plan.class_by_class:
        together = min(classes, group(there, seen))
        moved = max(56 * there, 24 * there + together * (12 * there + 8 * seen))
        after = 4 * classes * seen + moved + 24 * there + 8 * seen
    else:
        after = classes * max(16 * seen + 8 * there, 8 * seen + 12 * there) + 40 * there + 20 * seen
    return max(before, windows, after) + _SMALL_BYTES
