"""The same result within less memory: what a plan changes about a run. Only for the model child.

A bundle makes probabilities of all classes, takes them to the grid of the source and only then looks which is the
highest: at each of these steps all classes exist, once or several times. Where it is known what its steps are, the
classes are gone through in groups instead, or, where the highest is looked for on the grid of the network, slab by
slab while the windows are stitched together. Every number comes out as it would have, to the bit.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices, get_valid_patch_size, no_collation
from monai.inferers import SliceInferer, SlidingWindowInferer, SlidingWindowInfererAdapt
from monai.inferers.utils import _get_scan_interval
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    Invertd,
    InvertibleTransform,
    Lambdad,
    MapTransform,
    apply_transform,
)
from monai.utils import CommonKeys, PytorchPadMode, ensure_tuple_rep, fall_back_tuple, look_up_option
from torch.nn.functional import affine_grid
from torch.overrides import TorchFunctionMode

from meddaemon.inference.bundles.channels import (
    PIECE_BYTES,
    SIGMOID,
    SOFTMAX,
    Activation,
    Highest,
    highest,
    label_type,
)
from meddaemon.inference.bundles.engine import fitted_to
from meddaemon.inference.plan import RunPlan, group

_STITCH = (SlidingWindowInferer, SlidingWindowInfererAdapt)
# Their inverses treat every channel alike.
_CHANNELWISE = {
    "BorderPadd",
    "CenterSpatialCropd",
    "CropForegroundd",
    "DivisiblePadd",
    "Flipd",
    "Orientationd",
    "ResizeWithPadOrCropd",
    "Resized",
    "Rotate90d",
    "Spacingd",
    "SpatialCropd",
    "SpatialPadd",
    "SpatialResampled",
    "ToTensord",
}


class Way:
    """How items, one after the other, go through the network and what follows.

    `told` says how the last one went, `outputs` how many classes the network had for it, 0 where it has none.
    """

    def __init__(self, inferer: Any, after: Any, plan: RunPlan) -> None:
        """Take the bundle's inferer and its postprocessing, and follow the plan."""
        self._plan = plan
        self._inferer = self.adapted(inferer)
        self._after = after
        self._pivot = _pivot(after) if plan.class_by_class else None
        self._chosen = False
        self.told = ""
        self.outputs = 0

    def adapted(self, inferer: Any) -> Any:
        """Return an inferer as the plan wants it, a copy where that differs; what stitches no windows as it is."""
        plan = self._plan
        if not isinstance(inferer, SlidingWindowInferer) or (plan.window_batch is None and not plan.outputs_on_host):
            return inferer
        other = copy.copy(inferer)
        if plan.window_batch is not None:
            other.sw_batch_size = plan.window_batch
        if plan.outputs_on_host:
            other.device = torch.device("cpu")
        return other

    def leave(self, why: str) -> None:
        """Say, where the plan wants anything else, why all classes are gone through at once."""
        if self._plan.class_by_class:
            self.told = f"the classes at once: {why}"

    def infer(self, image: torch.Tensor, network: Any) -> Any:
        """Return what the inferer returns; or the class of each voxel, where nothing more is wanted of the classes."""
        self._chosen = False
        inferer = fitted_to(self._inferer, image.shape[2:])
        if self._chooses_at_once() and type(inferer) in _STITCH:
            before = torch.get_rng_state()
            activation = _activation(self._after.transforms[0])
            stitching = _Stitching(inferer, image, activation)
            labels = stitching.labels(network)
            if labels is not None:
                self._chosen, self.outputs = True, stitching.classes
                return labels
            torch.set_rng_state(before)
        raw = inferer(image, network)
        self.outputs = int(raw.shape[1]) if isinstance(raw, torch.Tensor) and raw.ndim > 1 else 0
        return raw

    def finish(self, data: dict[Any, Any]) -> Any:
        """Return the data after the postprocessing; what lies under `pred` may be overwritten."""
        # Whoever called keeps none of what is no longer needed.
        held = dict(data)
        data.clear()
        data, held = held, {}
        if self._pivot is None:
            self.leave("no step after the network takes them one by one")
            return self._shipped(data, 0)
        steps: Sequence[Any] = self._after.transforms
        pivot = steps[self._pivot]
        if self._chosen:
            self.told = "labels slab by slab while the windows were stitched"
            return self._labelled(data, data[CommonKeys.PRED], self._pivot)
        data = self._activated(data)
        channels = data.get(CommonKeys.PRED)
        if not isinstance(channels, MetaTensor) or channels.ndim < 3:
            self.leave("they are no image")
            return self._shipped(data, self._pivot)
        if isinstance(pivot, AsDiscreted):
            self.told = "labels slab by slab"
            labels = _placed(highest(channels.as_tensor())[None], channels)
            return self._labelled(data, labels, self._pivot)
        if unknown := _mixing(pivot):
            self.leave(f"{unknown} is not known to take them one by one")
            return self._shipped(data, self._pivot)
        self.told = "class by class"
        return self._inverted(data, channels, self._pivot)

    def _shipped(self, data: Any, start: int) -> Any:
        """Return the data after the steps from `start` on, as MONAI does them; no step keeps what the next one made."""
        if type(self._after) is not Compose or self._after.lazy:
            return apply_transform(self._after, data)
        for index in range(start, len(self._after.transforms)):
            data = self._after(data, start=index, end=index + 1)
        return data

    def _chooses_at_once(self) -> bool:
        """Say whether the class is chosen on the grid of the network, of what it returns or of softmax of that."""
        if self._pivot is None or not _is(self._after.transforms[self._pivot], "argmax"):
            return False
        before = self._after.transforms[: self._pivot]
        return not before or (len(before) == 1 and _activation(before[0]) is SOFTMAX)

    def _activated(self, data: dict[Any, Any]) -> dict[Any, Any]:
        """Return the data after the steps before the one from which on the classes are taken one by one."""
        for index, step in enumerate(self._after.transforms[: self._pivot]):
            activation, value = _activation(step), data.get(CommonKeys.PRED)
            if activation is not None and isinstance(value, MetaTensor) and value.ndim > 2:
                # Only of these it is known that what they return is theirs alone.
                owned = type(self._inferer) in (*_STITCH, SliceInferer)
                made = activation.whole(value.as_tensor(), owned=owned)
                data = {**data, CommonKeys.PRED: _placed(made, value)}
            else:
                data = self._after(data, start=index, end=index + 1)
        return data

    def _labelled(self, data: Mapping[Any, Any], labels: torch.Tensor, index: int) -> Any:
        """Return the data after the step that chose the class, and all that follow."""
        step = self._after.transforms[index]
        converted = step.converter(labels, False, step.to_onehot[0], step.threshold[0], step.rounding[0])
        return self._shipped({**data, CommonKeys.PRED: converted}, index + 1)

    def _inverted(self, data: Mapping[Any, Any], channels: MetaTensor, pivot: int) -> Any:
        """Return the data after the inversion and what follows, so many classes at a time as fit."""
        each, chooses = self._one_by_one(pivot + 1)
        beyond = pivot + 1 + len(each)
        # Where nothing follows that would ask for the type, masks of 0 and 1 need but a byte each.
        masks = bool(each) and beyond == len(self._after.transforms) and _is(each[-1], "threshold")
        best = Highest(len(channels)) if chooses else _Collected(len(channels), torch.uint8 if masks else None)
        found: dict[Any, Any] = {}
        first, size, places = 0, 1, _Places()
        while first < len(channels):
            part = _placed(channels.as_tensor()[first : first + size], channels)
            found.clear()
            with places:
                found.update(self._after.transforms[pivot]({**data, CommonKeys.PRED: part}))
            for step in each:
                found[CommonKeys.PRED] = self._step(step, found, first, len(channels))
            value: MetaTensor = found.pop(CommonKeys.PRED)
            best.add(value.as_tensor())
            first += len(part)
            size = group(value[0].numel(), channels[0].numel())
            like = _placed(torch.empty(0), value)
            del part, value
        del places
        if isinstance(best, Highest):
            return self._labelled(found, _placed(best.labels[None], like), beyond)
        return self._shipped({**found, CommonKeys.PRED: _placed(best.values, like)}, beyond)

    def _one_by_one(self, start: int) -> tuple[list[Any], bool]:
        """Return the steps from `start` on that take the classes one by one, and whether the class is chosen then."""
        each: list[Any] = []
        for step in self._after.transforms[start:]:
            if _is(step, "argmax"):
                return each, True
            if not (_is(step, "threshold") or _is(step, "rounding") or _activation(step) is SIGMOID):
                break
            each.append(step)
        return each, False

    def _step(self, step: Any, data: dict[Any, Any], first: int, classes: int) -> Any:
        """Return what one step makes of a group of classes, of which `first` is the first."""
        activation, value = _activation(step), data[CommonKeys.PRED]
        if activation is None:
            return step(data)[CommonKeys.PRED]
        plain = value.as_tensor().float()
        # In the order of memory, which is that in which torch goes through them.
        order = [0, *sorted(range(1, plain.ndim), key=lambda axis: -plain.stride(axis))]
        flat = plain.permute(order).contiguous()
        voxels = flat[0].numel()
        made = activation.part(flat.reshape(1, -1), first * voxels, classes * voxels).reshape(flat.shape)
        back = sorted(range(plain.ndim), key=order.__getitem__)
        return _placed(made.permute(back), value)


class _Places(TorchFunctionMode):
    """Computes once for all groups where to look for each voxel of the source: that takes longer than to look there."""

    def __init__(self) -> None:
        super().__init__()
        self._key: tuple[Any, ...] = ()
        self._grid: torch.Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, or return what it gave the last time."""
        if func is not affine_grid:
            return func(*args, **(kwargs or {}))
        return self._at(*args, **(kwargs or {}))

    def _at(self, theta: torch.Tensor, size: Sequence[int], align_corners: bool | None = None) -> torch.Tensor:
        # How many channels there are makes no difference.
        key = (theta.tolist(), theta.dtype, theta.device, size[0], tuple(size[2:]), align_corners)
        if self._grid is None or key != self._key:
            self._key, self._grid = key, None
            self._grid = affine_grid(theta, list(size), align_corners)
        return self._grid


class _Collected:
    """All classes that come one after the other, in one tensor; of their own type, or of `dtype`."""

    def __init__(self, classes: int, dtype: torch.dtype | None) -> None:
        self._classes = classes
        self._dtype = dtype
        self._seen = 0
        self.values = torch.empty(0)

    def add(self, values: torch.Tensor) -> None:
        if not self._seen:
            shape = (self._classes, *values.shape[1:])
            self.values = torch.empty(shape, dtype=self._dtype or values.dtype, device=values.device)
        self.values[self._seen : self._seen + len(values)] = values
        self._seen += len(values)


class _Stitching:
    """Windows stitched together as MONAI does it, of which no more is kept than later windows still change.

    The windows come in the order of the first axis: behind the one that begins last, everything is final. What is
    added to what, and in which order, is what `monai.inferers.sliding_window_inference` does.
    """

    def __init__(self, inferer: SlidingWindowInferer, image: torch.Tensor, activation: Activation | None) -> None:
        """Take an inferer, an image (1, channel, x, y[, z]), and what makes probabilities of the classes."""
        self._inferer = inferer
        self._activation = activation
        self.classes = 0
        self._shape = tuple(image.shape[2:])
        self._window: tuple[int, ...] = tuple(fall_back_tuple(inferer.roi_size, self._shape))
        self._image = image.as_tensor() if isinstance(image, MetaTensor) else image
        large = inferer.cpu_thresh is not None and image.shape[2:].numel() > inferer.cpu_thresh
        self._device = torch.device(inferer.device or ("cpu" if large else image.device))
        # Where the image is smaller than a window: before it, and as large as it then is.
        self._before = [max(0, size - own) // 2 for size, own in zip(self._window, self._shape, strict=True)]
        self._size = tuple(map(max, self._shape, self._window))

    def labels(self, network: Any) -> torch.Tensor | None:
        """Return which class is the highest of each voxel (1, 1, x, y[, z]).

        None where this inferer, or what this network returns for a window, is stitched in any other way.
        """
        inferer, one = self._inferer, len(self._image) == 1 and self._image.ndim > 3
        buffered = (inferer.buffer_steps or 0) > 0
        if inferer.with_coord or buffered or not one or self._image.dtype != torch.float32:
            return None
        image, windows = self._padded(), self._windows()
        step, done = inferer.sw_batch_size, 0
        device = torch.device(inferer.sw_device or image.device)
        weight = self._weight(device)
        found = torch.empty(self._shape, dtype=torch.int32, device=self._device)
        for start in range(0, len(windows), step):
            batch = windows[start : start + step]
            data = [image[(slice(None), slice(None), *window)] for window in batch]
            made = network((torch.cat(data) if step > 1 else data[0]).to(device))
            if not start:
                if not isinstance(made, torch.Tensor) or tuple(made.shape[2:]) != self._window:
                    return None
                self.classes = made.shape[1]
                self._ring = torch.zeros((self.classes, *self._window[:1], *self._size[1:]), device=self._device)
                self._count = self._counted(windows, weight)
                found = found.to(label_type(self.classes))
            made *= weight
            for window, values in zip(batch, made.to(self._device), strict=True):
                self._settle(found, done, window[0].start)
                done = window[0].start
                self._add(window, values)
        self._settle(found, done, self._size[0])
        return found[None, None]

    def _padded(self) -> torch.Tensor:
        """Return the image, as large as a window at least."""
        if self._size == self._shape:
            return self._image
        pads: list[int] = []
        for axis in reversed(range(len(self._shape))):
            before = self._before[axis]
            pads += [before, self._size[axis] - self._shape[axis] - before]
        inferer = self._inferer
        mode = look_up_option(inferer.padding_mode, PytorchPadMode)
        return torch.nn.functional.pad(self._image, pad=pads, mode=mode, value=inferer.cval)

    def _windows(self) -> list[tuple[slice, ...]]:
        dimensions = len(self._size)
        overlap = ensure_tuple_rep(self._inferer.overlap, dimensions)
        step = _get_scan_interval(self._size, self._window, dimensions, overlap)
        windows: list[tuple[slice, ...]] = dense_patch_slices(self._size, self._window, step)
        return windows

    def _weight(self, device: torch.device) -> torch.Tensor:
        """Return what each voxel of a window counts (1, 1, x, y[, z])."""
        inferer, dtype = self._inferer, self._image.dtype
        size = get_valid_patch_size(self._size, self._window)
        weight = inferer.roi_weight_map
        if weight is None or size != self._window:
            weight = compute_importance_map(
                size, mode=inferer.mode, sigma_scale=inferer.sigma_scale, device=device, dtype=dtype
            )
        weight = torch.as_tensor(weight).to(device=device, dtype=dtype)
        return weight[None, None] if weight.ndim == len(self._size) else weight

    def _counted(self, windows: Sequence[tuple[slice, ...]], weight: torch.Tensor) -> torch.Tensor:
        """Return by what each voxel of the padded image is divided (1, x, y[, z])."""
        count = torch.zeros((1, *self._size), dtype=self._image.dtype, device=self._device)
        on_device = weight.to(self._device)[0]
        for window in windows:
            count[(slice(None), *window)] += on_device
        return count

    def _settle(self, found: torch.Tensor, first: int, last: int) -> None:
        """Find the labels of the planes from `first` to before `last`, and make room for others in their place."""
        begin, (high, *rest) = self._before[1], self._shape[1:]
        inside = [slice(at, at + size) for at, size in zip(self._before[2:], rest, strict=True)]
        line = math.prod(rest)
        step = max(1, PIECE_BYTES // (self.classes * line * self._ring.element_size()))
        for plane in range(first, last):
            values = self._ring[:, plane % self._window[0]]
            own = plane - self._before[0]
            for row in range(0, high, step) if 0 <= own < self._shape[0] else ():
                rows = slice(row, min(high, row + step))
                there = (slice(None), slice(begin + row, begin + rows.stop), *inside)
                piece = (values[there] / self._count[:, plane][there]).reshape(self.classes, -1)
                if self._activation is not None:
                    piece = self._activation.part(piece, (own * high + row) * line, math.prod(self._shape))
                found[own, rows] = highest(piece).reshape(found[own, rows].shape)
            values.zero_()

    def _add(self, window: Sequence[slice], values: torch.Tensor) -> None:
        """Add a window (class, x, y[, z]) at its place in the ring, which goes on at its beginning."""
        depth = self._window[0]
        begin = window[0].start % depth
        self._ring[(slice(None), slice(begin, depth), *window[1:])] += values[:, : depth - begin]
        if begin:
            self._ring[(slice(None), slice(0, begin), *window[1:])] += values[:, depth - begin :]


def _placed(values: torch.Tensor, like: MetaTensor) -> MetaTensor:
    """Return values with what is known of the place of another image."""
    image: MetaTensor = MetaTensor(values)
    image.copy_meta_from(like, copy_attr=True, keys=None)
    return image


def _pivot(after: Any) -> int | None:
    """Return the first step that brings the classes to the source, or chooses one; None where there is none."""
    if type(after) is not Compose or after.lazy:
        return None
    found = (index for index, step in enumerate(after.transforms) if type(step) is Invertd or _is(step, "argmax"))
    index = next(found, None)
    return index if index is not None and _alone(after.transforms[index]) else None


def _alone(step: Any) -> bool:
    """Say whether a step is about the prediction and nothing else."""
    return isinstance(step, MapTransform) and tuple(step.keys) == (CommonKeys.PRED,)


def _activation(step: Any) -> Activation | None:
    """Return the activation that a step is, over the classes of the prediction."""
    if type(step) is not Activationsd or not _alone(step) or step.other[0] is not None:
        return None
    sigmoid, softmax = bool(step.sigmoid[0]), bool(step.softmax[0])
    if sigmoid == softmax or step.converter.kwargs.get("dim", 0) != 0:
        return None
    return SIGMOID if sigmoid else SOFTMAX


def _is(step: Any, what: str) -> bool:
    """Say whether a step chooses a class (`argmax`) first, or only compares (`threshold`) or rounds (`rounding`)."""
    if type(step) is not AsDiscreted or not _alone(step):
        return False
    kwargs = step.converter.kwargs
    if kwargs.get("dim", 0) != 0 or not kwargs.get("keepdim", True):
        return False
    if what == "argmax" or step.argmax[0] or step.to_onehot[0] is not None:
        return what == "argmax" and bool(step.argmax[0])
    return getattr(step, what)[0] is not None


def _mixing(invert: Invertd) -> str:
    """Return the step among those that are inverted that may take several classes into account; "" where none does."""
    transform = invert.transform
    if invert.post_func[0] is not None or not invert.to_tensor[0]:
        return "what follows the inversion"
    steps = transform.flatten().transforms if type(transform) is Compose else (transform,)
    for step in steps:
        known = type(step).__name__ in _CHANNELWISE and type(step).__module__.startswith("monai.transforms.")
        # A function that nobody said how to invert is left alone.
        known = known or (type(step) is Lambdad and all(inverse is no_collation for inverse in step.inv_func))
        if isinstance(step, InvertibleTransform) and not known:
            return type(step).__name__
    return ""
