"""The probabilities that a segmentation had before its postprocessing made labels of them. Only for the model child.

The postprocessing of the bundle runs as it is, one transform after the other, and is watched: what comes out of a
softmax or sigmoid, or is a fraction from 0 to 1 anyway, is a probability until a transform makes it something else.
What it was just before is kept, brought to the grid of the source as the bundle or its affine says.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Compose, apply_transform
from monai.utils import CommonKeys

from meddaemon.domain.errors import ModelFailed
from meddaemon.inference.bundles.artefacts import Values, placed
from meddaemon.inference.bundles.images import Grid

_TOLERANCE = 1e-3
"""So far beyond 0 and 1 an interpolation may have moved a probability."""


def steps_of(postprocessing: Any) -> list[Any]:
    """Return the transforms of a chain, those of chains within it included; what draws lots or waits is one of them."""
    if type(postprocessing) is Compose and not postprocessing.lazy:
        return [step for each in postprocessing.transforms for step in steps_of(each)]
    return [] if postprocessing is None else [postprocessing]


def activation(steps: Sequence[Any], key: str) -> int:
    """Return how many steps there are up to the first softmax or sigmoid, that one included; 0 where there is none."""
    return next((count for count, step in enumerate(steps, start=1) if _activates(step, key)), 0)


def run(steps: Sequence[Any], data: Any, key: str, take: Callable[[torch.Tensor], None], *, known: bool = False) -> Any:
    """Run the steps, and have `take` called with the last probabilities under `key`, where there are any.

    `known`: what is there in the beginning are probabilities.
    """
    last: torch.Tensor | None = None
    value = _value(data, key)
    probable = known or is_fraction(value)
    for step in steps:
        before = value
        data = apply_transform(step, data)
        value = _value(data, key)
        if _activates(step, key):
            probable = True
        elif probable and value is not before and (_discretises(step, key) or not _may_be_probable(value, before)):
            last, probable = before, False
        elif not probable and last is None:
            probable = is_fraction(value)
    if probable:
        last = value
    if last is not None:
        take(last)
    return data


def kept(
    probabilities: torch.Tensor, grid: Grid, seen: Grid | None, *, wanted: Sequence[int], segments: Sequence[int]
) -> dict[int, Values]:
    """Return the probability of each of the `wanted` labels on the grid of the source.

    Channels are what `outputs.drawn` takes them for: one class each, background first, or one segment each. Raises
    `ModelFailed` when they are neither.
    """
    channels = probabilities.shape[0]
    place = channel_of(channels, segments)
    return {label: placed(probabilities[place[label]][None], grid, seen) for label in wanted}


def channel_of(channels: int, segments: Sequence[int]) -> dict[int, int]:
    """Return in which channel the probability of each label is. Raises `ModelFailed` where nobody can tell."""
    if segments and channels == max(segments) + 1:
        return {label: label for label in segments}
    if channels == len(segments):
        return {label: index for index, label in enumerate(segments)}
    raise ModelFailed(
        f"the probabilities have {channels} channels, which are neither one for each of the {len(segments)} segments of"
        " the contract nor one for each label and the background"
    )


def is_fraction(value: object) -> bool:
    """Say whether a value can be nothing but probabilities: from 0 to 1, and not all whole; NaN say nothing."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
        return False
    lowest, highest = _range(value)
    return lowest >= 0 and highest <= 1 and bool((value != value.round()).any())


def _value(data: Any, key: str) -> Any:
    return data.get(key, data.get(CommonKeys.PRED)) if isinstance(data, Mapping) else data


def _acts_on(step: object, key: str) -> bool:
    keys = getattr(step, "keys", None)
    return keys is None or key in keys or CommonKeys.PRED in keys


def _activates(step: object, key: str) -> bool:
    """Say whether a transform is a softmax or a sigmoid, those for dictionaries have one setting for each key."""
    if not type(step).__name__.startswith("Activations") or not _acts_on(step, key):
        return False
    settings = (getattr(step, name, False) for name in ("softmax", "sigmoid"))
    return any(any(each) if isinstance(each, tuple | list) else bool(each) for each in settings)


def _discretises(step: object, key: str) -> bool:
    return type(step).__name__.startswith("AsDiscrete") and _acts_on(step, key)


def _may_be_probable(value: object, before: torch.Tensor) -> bool:
    """Say whether probabilities that were moved, turned or copied are probabilities still."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.shape[0] != before.shape[0]:
        return False
    if bool((value == value.round()).all()) and bool((before != before.round()).any()):
        return False
    lowest, highest = _range(value)
    return lowest >= -_TOLERANCE and highest <= 1 + _TOLERANCE


def _range(value: torch.Tensor) -> tuple[float, float]:
    lowest, highest = (float(each) for each in torch.aminmax(value))
    if math.isnan(lowest):
        finite = torch.nan_to_num(value, nan=0.0)
        lowest, highest = (float(each) for each in torch.aminmax(finite))
    return lowest, highest
