"""What a model was made for, and what its output must be: whether a result may be given at all, and be believed.

The limits are those of the contract. An input beyond them gives no prediction (see `inputs`), an output beyond them a
result that is marked; both with the reason. Pure NumPy.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.contract import InputContract, ModelContract, ModelKind, Range
from meddaemon.domain.picture import Pictures, Signal
from meddaemon.domain.result import Box, Landmark, Prediction
from meddaemon.domain.volume import Volume
from meddaemon.inference.values import Input, array_of

PERCENTILES = (1.0, 99.0)
"""Between these the intensities of an input lie; a few pixels of metal or padding say nothing about it."""

_PROBABILITY = Range(minimum=0, maximum=1)
_SAMPLE = 2**20
"""So many values are enough for a percentile, whatever the size of the volume."""


def check_input(value: Input, wanted: InputContract, header: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """Return in what an input is beyond the limits of its contract, with the numbers; empty when it is within them.

    `header` has the components of what the limits name of the header.
    """
    limits = wanted.limits
    found: list[str] = []
    for keyword, taken in limits.values.items():
        said = (header or {}).get(keyword, ())
        if not {each.upper() for each in said} & {each.upper() for each in taken}:
            found.append(f"{keyword} {'/'.join(said) or '(none)'}; the model takes {', '.join(taken)}")
    spacing, shape = _grid(value)
    if limits.spacing_mm is not None:
        found += _beyond("spacing", spacing, limits.spacing_mm, "mm")
    if limits.extent_mm is not None:
        extent = (
            None if spacing is None else tuple(n * mm for n, mm in zip(shape[-len(spacing) :], spacing, strict=True))
        )
        found += _beyond("extent", extent, limits.extent_mm, "mm")
    if limits.planes is not None:
        found += _beyond("planes", shape[:1], limits.planes, "")
    if limits.intensity is not None:
        sample = _shown(value, wanted)
        ends = tuple(np.percentile(sample, PERCENTILES).tolist()) if sample.size else None
        found += _beyond("intensity", ends, limits.intensity, "", joined=" to ")
    return [f"input {wanted.slot}: {each}" for each in found]


def check_output(prediction: Prediction, contract: ModelContract) -> list[str]:
    """Return why a prediction as such cannot be believed, whatever it says; empty when nothing speaks against it."""
    if contract.kind is ModelKind.SEGMENTATION:
        return list(_drawing_doubts(prediction, contract))
    if contract.kind is ModelKind.CLASSIFICATION:
        images = _by_image(prediction, len(contract.classes))
        return list(dict.fromkeys(doubt for scores in images for doubt in _probability_doubts(scores, contract)))
    if contract.kind is ModelKind.REGRESSION:
        return [
            f"{each.name.meaning} is {value}, which is no number"
            for values in _by_image(prediction, len(contract.scores))
            for each, value in zip(contract.scores, values, strict=False)
            if not math.isfinite(value)
        ]
    return list(dict.fromkeys(_place_doubts(prediction)))


def _by_image(prediction: Prediction, count: int) -> list[tuple[float, ...]]:
    """Return the scores of each image that has its own."""
    starts = range(0, len(prediction.scores), count) if prediction.sources else (0,)
    return [prediction.scores[start : start + count] for start in starts]


def _grid(value: Input) -> tuple[tuple[float, ...] | None, tuple[int, ...]]:
    """Return the distance of neighbours in mm along each axis in space, None where unknown, and the shape."""
    if isinstance(value, Volume):
        return value.geometry.spacing, value.voxels.shape
    if isinstance(value, Pictures):
        # Colour is no axis of the picture.
        return value.spacing_mm, value.frames.shape[:3]
    return None, value.samples.shape


def _sample(values: NDArray[np.float32] | NDArray[np.int16]) -> NDArray[np.float32] | NDArray[np.int16]:
    """Return evenly chosen values: every so many along each axis, so that none is preferred."""
    step = max(1, math.ceil((values.size / _SAMPLE) ** (1 / values.ndim)))
    return values[(slice(None, None, step),) * values.ndim]


def _shown(value: Input, wanted: InputContract) -> NDArray[np.float64]:
    """Return a sample of the values, without as many of those of padding as there are of padding in the whole."""
    values = array_of(value)
    sample = _sample(values).reshape(-1).astype(np.float64)
    if wanted.padding is None or isinstance(value, Signal) or not value.padding:
        return sample
    alike = np.flatnonzero(sample == float(values.dtype.type(wanted.padding)))
    return np.delete(sample, alike[: round(value.padding / values.size * sample.size)])


def _beyond(what: str, values: tuple[float, ...] | None, limits: Range, unit: str, *, joined: str = " × ") -> list[str]:
    taken = f"; the model takes {limits} {unit}".rstrip()
    if values is None:
        return [f"its {what} is not known{taken}"]
    if all(limits.holds(each) for each in values):
        return []
    return [f"{what} {joined.join(f'{each:g}' for each in values)} {unit}".rstrip() + taken]


def _drawing_doubts(prediction: Prediction, contract: ModelContract) -> Iterator[str]:
    limits = contract.output_limits
    drawn = prediction.labels if prediction.labels is not None else prediction.masks
    if drawn is None or not drawn.size:
        return
    # Of overlapping segments each is judged alone: together they may well cover everything.
    parts = [drawn] if prediction.labels is not None else list(drawn)
    covered = max(sum(int(np.count_nonzero(plane)) for plane in part) / part.size for part in parts)
    if covered == 0 and not limits.may_be_empty:
        yield "nothing was segmented"
    if covered > limits.maximum_foreground:
        yield f"{covered:.1%} of all voxels are segmented; plausible are at most {limits.maximum_foreground:.1%}"


def _probability_doubts(scores: Sequence[float], contract: ModelContract) -> Iterator[str]:
    sums: dict[str, float] = defaultdict(float)
    for each, score in zip(contract.classes, scores, strict=False):
        if not _PROBABILITY.holds(score):
            yield f"the score of {each.name} is {score:g}, which is no probability"
        elif each.group:
            sums[each.group] += score
    broken = {each.group for each, score in zip(contract.classes, scores, strict=False) if not math.isfinite(score)}
    for group, total in sums.items():
        if group not in broken and abs(total - 1) > contract.output_limits.probability_tolerance:
            yield f"the scores of {group} add up to {total:g}, not to 1"


def _place_doubts(prediction: Prediction) -> Iterator[str]:
    volume = prediction.geometry.shape if prediction.geometry else ()
    picture = prediction.pictures.shape[1:] if prediction.pictures else ()
    places: list[Box | Landmark] = [*prediction.boxes, *prediction.landmarks]
    for each in places:
        low, high = (each.low, each.high) if isinstance(each, Box) else (each.position, each.position)
        what = _named(each)
        if not np.isfinite((*low, *high)).all():
            yield f"{what} has coordinates that are no numbers"
        elif isinstance(each, Box) and not all(first < last for first, last in zip(low, high, strict=True)):
            yield f"{what} has no size"
        elif any(
            last < -0.5 or first > size - 0.5
            for first, last, size in zip(low, high, picture if each.source else volume, strict=False)
        ):
            yield f"{what} lies outside of the {'image' if each.source else 'volume'}"
        if not _PROBABILITY.holds(each.score):
            yield f"{what} has the score {each.score:g}, which is no probability"


def _named(each: Box | Landmark) -> str:
    return f"a {'box' if isinstance(each, Box) else 'landmark'} of label {each.label}"
