"""What is kept beside an answer, brought to the grid of the source. Only for the model child."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from numpy.typing import NDArray

from meddaemon.domain.errors import ModelFailed
from meddaemon.domain.result import MAX_ARTEFACT_BYTES, MAX_ARTEFACTS, Artefact, ArtefactKind
from meddaemon.inference.bundles.images import Grid, grid_of
from meddaemon.inference.messages import allocate

Values: TypeAlias = NDArray[np.float16] | NDArray[np.float32]
_SLAB_VOXELS = 2**21
"""So many voxels are interpolated at once: MONAI needs some 60 bytes for each of them."""
_BELOW_HALF = np.nextafter(np.float16(0.5), np.float16(0))


def placed(image: torch.Tensor, grid: Grid, seen: Grid | None, *, wide: bool = False) -> Values:
    """Return one channel (1, x, y[, z]) as it lies on `grid`, that of the source: [plane, row, column].

    It lies there already, or as `seen`, the image of the network, does; then it is interpolated linearly by its affine,
    slab by slab, and is 0 beyond its border. Numbers are halves, rounded such that they stay on their side of 1/2, or
    `wide`, of single precision. Raises `ModelFailed` for what lies anywhere else, or does not say where.
    """
    plain: torch.Tensor = image.as_tensor() if isinstance(image, MetaTensor) else image
    # Where nothing was moved, there is one place for it.
    unmoved = grid if seen is not None and seen.lies_as(grid) else None
    found = grid_of(image) if isinstance(image, MetaTensor) else unmoved
    if found is None or plain.ndim != len(grid.shape) + 1:
        raise ModelFailed(f"what is to be kept beside the answer {tuple(image.shape)} does not know where it lies")
    values = allocate(grid.shape[::-1], np.float32 if wide else np.float16)
    if found.lies_as(grid) and tuple(plain.shape[1:]) == grid.shape:
        _fill(values, lambda first, last: plain[0, ..., first:last].cpu())
    elif seen is not None and found.lies_as(seen) and isinstance(image, MetaTensor):
        exact = MetaTensor(plain.to(torch.float64), affine=image.affine)
        _fill(values, lambda first, last: _slab(exact, grid, first, last))
    else:
        raise ModelFailed(
            f"what is to be kept beside the answer lies on a grid of {found.shape}, which is neither that of the source"
            f" {grid.shape} nor that of the image that the network saw"
        )
    return values


def assembled(
    kind: ArtefactKind, of: str, parts: Sequence[Values], sources: Sequence[tuple[str, int] | None]
) -> tuple[Artefact, ...]:
    """Return the parts, one for each run of the network, as one artefact of a volume or one of each picture."""
    if any(source is not None for source in sources):
        return tuple(
            Artefact(kind=kind, of=of, values=part, source=source) for part, source in zip(parts, sources, strict=True)
        )
    if parts[0].ndim == 3:
        return (Artefact(kind=kind, of=of, values=parts[0]),)
    values = allocate((len(parts), *parts[0].shape), parts[0].dtype)
    for plane, part in enumerate(parts):
        values[plane] = part
    return (Artefact(kind=kind, of=of, values=values),)


def bounded(artefacts: Iterable[Artefact]) -> tuple[tuple[Artefact, ...], str]:
    """Return as many artefacts as a prediction may carry, and what is to be said of the others."""
    kept: list[Artefact] = []
    left: list[str] = []
    size = 0
    for each in artefacts:
        if len(kept) < MAX_ARTEFACTS and size + each.values.nbytes <= MAX_ARTEFACT_BYTES:
            kept.append(each)
            size += each.values.nbytes
        else:
            left.append(each.name)
    if not left:
        return tuple(kept), ""
    limits = f"at most {MAX_ARTEFACTS} are kept, of {MAX_ARTEFACT_BYTES} bytes together"
    return tuple(kept), f"{len(left)} left out, {left[0]} for one: {limits}"


def _fill(values: Values, slab: Callable[[int, int], torch.Tensor]) -> None:
    """Fill the array from slabs (x, y[, z]) along its first axis, the last one of the image."""
    step = max(1, _SLAB_VOXELS // max(1, values[0].size))
    for first in range(0, len(values), step):
        last = min(first + step, len(values))
        # What is not a number is told of with the prediction; here it says nothing.
        exact = torch.nan_to_num(slab(first, last), nan=0.0, posinf=0.0, neginf=0.0).numpy().transpose()
        part = values[first:last]
        part[:] = exact
        if values.dtype == np.float16:
            part[(exact < 0.5) & (part == 0.5)] = _BELOW_HALF


def _slab(image: MetaTensor, grid: Grid, first: int, last: int) -> torch.Tensor:
    shift = np.eye(len(grid.affine))
    shift[-2, -1] = first
    resample = SpatialResample(mode="bilinear", padding_mode="zeros", dtype=torch.float64)
    moved = resample(
        image,
        dst_affine=torch.from_numpy(grid.affine @ shift),
        spatial_size=(*grid.shape[:-1], last - first),
    )
    plain: torch.Tensor = moved.as_tensor() if isinstance(moved, MetaTensor) else moved
    return plain[0].cpu()
