"""What a classifier looked at: saliency maps on the grid of the source. Only for the model child.

Grad-CAM and Grad-CAM++ are MONAI's; here are the layer that they look at, networks of tokens, and that nothing of it
stays behind in the network. Occlusion is ours: MONAI's indexes tensors by lists, which torch gives another meaning.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.visualize import GradCAM, GradCAMpp
from monai.visualize.class_activation_maps import ModelWithHooks

from meddaemon.domain.contract import Occasion, Saliency, present
from meddaemon.domain.errors import ModelFailed
from meddaemon.domain.result import Artefact, ArtefactKind
from meddaemon.inference.bundles.artefacts import assembled, placed
from meddaemon.inference.bundles.asked import Asked
from meddaemon.inference.bundles.images import Grid, grid_of

_PARTS = {2: 8, 3: 4}
"""Into so many parts each axis falls for occlusion; boxes of that size are hidden at every half of it."""
_BATCH = 8
_OTHERWISE = 'name another as layer in [explain], or use method = "occlusion"'
_TRIES = 6
"""So many norms of tokens are asked, from the last one on, whether the answer depends on its places."""


def check(network: object, asked: Asked) -> None:
    """Raise `ModelFailed` where the network cannot be explained in the way that the contract asks for."""
    explanation = asked.explanation
    if explanation.method is Saliency.NONE:
        return
    if not isinstance(network, torch.nn.Module):
        raise ModelFailed(f"[explain] needs the network itself, and the bundle has a {type(network).__name__}")
    if explanation.method is Saliency.OCCLUSION:
        return
    if isinstance(network, torch.jit.ScriptModule):
        raise ModelFailed('a TorchScript network cannot be looked into: [explain] needs method = "occlusion"')
    if explanation.layer and explanation.layer not in dict(network.named_modules()):
        raise ModelFailed(f"[explain] names the layer {explanation.layer!r}, which the network does not have")


def explained(scores: Sequence[float], asked: Asked) -> list[int]:
    """Return the places of the answers that are to be explained: those that are named, or those that are given.

    Where no class is there, and there is to be an explanation always, it is that of the highest.
    """
    explanation, answers = asked.explanation, asked.answers
    found = present(scores, [(each.group, each.threshold) for each in answers])
    if not any(found) and explanation.when is Occasion.ALWAYS:
        ungrouped = all(each.threshold is None and not each.group for each in answers)
        highest = int(np.argmax(np.nan_to_num(scores, nan=-math.inf)))
        found = [ungrouped or index == highest for index in range(len(answers))]
    if explanation.classes:
        positive = explanation.when is Occasion.POSITIVE
        return [
            index
            for index, each in enumerate(answers)
            if each.name in explanation.classes and (found[index] or not positive)
        ]
    return [index for index, there in enumerate(found) if there]


def saliency(
    network: torch.nn.Module,
    images: Sequence[tuple[MetaTensor, Grid, tuple[str, int] | None]],
    scores: Sequence[float],
    asked: Asked,
    device: torch.device,
) -> Iterator[Artefact]:
    """Yield a saliency map for each answer that is to be explained.

    `images` are those that the network saw, each with the grid of the source that it came from, and its picture.
    Grad-CAM is made such that the most important place of all images is 1; occlusion says how far the number that the
    network gives falls. Numbers that are none are not explained. The network is left as it was. Raises `ModelFailed`
    where no layer of it knows places.
    """
    if not np.isfinite(scores).all():
        # The prediction is marked for that; nothing rests on anything.
        return
    for index in explained(scores, asked):
        maps = [_map(network, image, index, asked, device) for image, _, _ in images]
        hidden = asked.explanation.method is Saliency.OCCLUSION
        if not hidden:
            highest = max(float(each.max()) for each in maps)
            maps = [each / highest if highest > 0 else each for each in maps]
        parts = [
            # How far a number falls is in its own unit, which may be any.
            placed(MetaTensor(each, affine=image.affine), grid, grid_of(image), wide=hidden)
            for each, (image, grid, _) in zip(maps, images, strict=True)
        ]
        sources = [source for _, _, source in images]
        yield from assembled(ArtefactKind.SALIENCY, asked.answers[index].name, parts, sources)


def _map(network: torch.nn.Module, image: MetaTensor, index: int, asked: Asked, device: torch.device) -> torch.Tensor:
    """Return the saliency (1, x, y[, z]) of one answer on the image that the network saw."""
    if not isinstance(image, MetaTensor) or image.ndim not in {3, 4}:
        raise ModelFailed(f"[explain] shows places in an image, and the network sees {tuple(image.shape)}")
    # A copy: gradients are asked of it, and some networks write into what they are given.
    batch = image.as_tensor().unsqueeze(0).to(device, copy=True)
    numbers = _Numbers(network, len(asked.answers))
    if asked.explanation.method is Saliency.OCCLUSION:
        found = _occlusion(numbers, batch, index)
    else:
        with _as_it_was(network), torch.enable_grad():
            found = _grad_cam(numbers, batch, index, asked)
    if not bool(torch.isfinite(found).all()):
        raise ModelFailed("the saliency map holds values that are not finite")
    return found.detach().float().cpu()


class _Numbers(torch.nn.Module):
    """The network, of which the first output is the numbers: one row for each image."""

    def __init__(self, network: torch.nn.Module, count: int) -> None:
        super().__init__()
        self.network = network
        self.count = count
        self.training = False

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Return (image, number)."""
        raw: Any = self.network(batch)
        while isinstance(raw, list | tuple):
            raw = raw[0]
        if not isinstance(raw, torch.Tensor) or raw[0].numel() != self.count:
            shape = tuple(raw.shape[1:]) if isinstance(raw, torch.Tensor) else type(raw).__name__
            raise ModelFailed(f"the network gives {shape}, which are not the {self.count} numbers of the contract")
        return raw.flatten(1)


def _grad_cam(numbers: _Numbers, batch: torch.Tensor, index: int, asked: Asked) -> torch.Tensor:
    explanation = asked.explanation
    kind = GradCAMpp if explanation.method is Saliency.GRADCAM_PLUS_PLUS else GradCAM
    layers = [f"network.{explanation.layer}"] if explanation.layer else _layers(numbers, batch)
    for layer in layers:
        hooked = _Hooked(numbers, layer, batch.shape[2:])
        try:
            found = kind(hooked, layer, postprocessing=lambda each: each)(batch.requires_grad_(), class_idx=index)
        except LookupError as error:
            raise ModelFailed(f"Grad-CAM cannot look at the layer {_named(layer)}: {error}; {_OTHERWISE}") from error
        finally:
            hooked.close()
        if hooked.sees_tokens and kind is GradCAMpp:
            # It weighs by powers of gradients, as if nothing were negative: it shows any place but the right one.
            raise ModelFailed('Grad-CAM++ is not for networks of tokens: [explain] needs method = "gradcam"')
        if hooked.depends:
            plain: torch.Tensor = found[0]
            return plain
    if not layers:
        raise ModelFailed(f"no layer of the network knows places: {_OTHERWISE}")
    # The answer rests on nothing that the layers see: that is what the map says.
    return torch.zeros_like(batch[0, :1])


def _named(layer: str) -> str:
    return layer.removeprefix("network.")


class _Hooked(ModelWithHooks):  # type: ignore[misc]
    """MONAI's, for layers of tokens too, and with hooks that come off again."""

    def __init__(self, network: torch.nn.Module, layer: str, size: Sequence[int]) -> None:
        super().__init__(network, layer, register_forward=True, register_backward=True)
        self.size = tuple(size)
        self.depends = False
        self.sees_tokens = False

    def __call__(self, x: torch.Tensor, class_idx: int | None = None, retain_graph: bool = False) -> Any:
        """Return scores, activations and gradients, the latter as images."""
        logits, activations, gradients = super().__call__(x, class_idx=class_idx, retain_graph=retain_graph)
        activations, gradients = (
            tuple(self._image(_first(each)) for each in found) for found in (activations, gradients)
        )
        self.depends = any(bool(each.any()) for each in gradients)
        # Grad-CAM++ weighs by exp(score), which is the same for all places and overflows.
        self.score = torch.zeros(1, device=x.device)
        return logits, activations, gradients

    def close(self) -> None:
        """Hold nothing of the run."""
        self.activations.clear()
        self.gradients.clear()

    def _image(self, found: torch.Tensor) -> torch.Tensor:
        """Return what a layer gives as (1, channel, *places)."""
        if found.ndim == len(self.size) + 2:
            return found.contiguous()
        grid = token_grid(found.shape[1], self.size) if found.ndim == 3 else None
        if grid is None:
            raise LookupError(f"it gives {tuple(found.shape)}, which are no places in an image of {self.size}")
        self.sees_tokens = True
        # A token for the class stands before those for places.
        places = found[:, -math.prod(grid) :]
        return places.transpose(1, 2).reshape(1, found.shape[2], *grid).contiguous()


def token_grid(count: int, size: Sequence[int]) -> tuple[int, ...] | None:
    """Return how tokens lie in an image of this size: patches of equal sides, and perhaps one token for the class."""
    grids = {
        tuple(length // side for length in size)
        for side in range(1, min(size) + 1)
        if all(length % side == 0 for length in size)
    }
    fitting = [grid for grid in grids if 1 < math.prod(grid) in {count, count - 1}]
    return fitting[0] if len(fitting) == 1 else None


def _layers(numbers: _Numbers, batch: torch.Tensor) -> list[str]:
    """Return the layers to look at, the best first: the last that knows places, or the last norms of tokens."""
    size = tuple(batch.shape[2:])
    calls: list[tuple[str, torch.nn.Module, tuple[int, ...]]] = []
    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: calls.append((name, module, _shape(output))))
        for name, module in numbers.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            numbers(batch)
    finally:
        for handle in handles:
            handle.remove()
    images = [at for at, (_, _, shape) in enumerate(calls) if len(shape) == len(size) + 2 and math.prod(shape[2:]) > 1]
    tokens = [
        at
        for at, (_, module, shape) in enumerate(calls)
        if isinstance(module, torch.nn.LayerNorm) and len(shape) == 3 and token_grid(shape[1], size)
    ]
    if tokens and (not images or tokens[-1] > images[-1]):
        return [calls[at][0] for at in reversed(tokens[-_TRIES:])]
    return [calls[images[-1]][0]] if images else []


def _shape(output: object) -> tuple[int, ...]:
    return tuple(output.shape) if isinstance(output, torch.Tensor) else ()


def _first(output: Any) -> torch.Tensor:
    while isinstance(output, list | tuple):
        output = output[0]
    tensor: torch.Tensor = output
    return tensor


@contextmanager
def _as_it_was(network: torch.nn.Module) -> Iterator[None]:
    """Let a network be hooked and derived: its weights need no gradients meanwhile, and afterwards all is as it was."""
    hooks = ("_forward_hooks", "_backward_hooks")
    modules = list(network.modules())
    before = [({name: list(getattr(each, name)) for name in hooks}, each._is_full_backward_hook) for each in modules]
    in_place = [each for each in modules if getattr(each, "inplace", False) is True]
    learning = [each for each in network.parameters() if each.requires_grad]
    for module in in_place:
        # What is changed in place cannot be derived.
        module.inplace = False  # type: ignore[assignment]
    for each in learning:
        each.requires_grad_(False)
    try:
        yield
    finally:
        for each in learning:
            each.requires_grad_(True)
        for module in in_place:
            module.inplace = True  # type: ignore[assignment]
        for module, (known, full) in zip(modules, before, strict=True):
            for name in hooks:
                found = getattr(module, name)
                for key in [key for key in found if key not in known[name]]:
                    del found[key]
            module._is_full_backward_hook = full


def _occlusion(numbers: _Numbers, batch: torch.Tensor, index: int) -> torch.Tensor:
    """Return how far the number falls, for each voxel the mean over the boxes that hid it by the mean of the image."""
    size = tuple(batch.shape[2:])
    sides = [max(1, math.ceil(length / _PARTS[len(size)])) for length in size]
    starts = [
        sorted({min(start, length - side) for start in range(0, length, max(1, side // 2))})
        for length, side in zip(size, sides, strict=True)
    ]
    boxes: list[tuple[slice, ...]] = [
        tuple(slice(start, start + side) for start, side in zip(corner, sides, strict=True))
        for corner in product(*starts)
    ]
    hiding = batch.mean(dim=tuple(range(2, batch.ndim)), keepdim=True)
    whole = float(numbers(batch)[0, index])
    falls = torch.zeros(size, dtype=torch.float64)
    counts = torch.zeros(size, dtype=torch.float64)
    for first in range(0, len(boxes), _BATCH):
        some = boxes[first : first + _BATCH]
        hidden = batch.repeat(len(some), *[1] * (batch.ndim - 1))
        for row, box in enumerate(some):
            hidden[row][(slice(None), *box)] = hiding[0]
        for box, number in zip(some, numbers(hidden)[:, index].tolist(), strict=True):
            falls[box] += whole - number
            counts[box] += 1
    return (falls / counts)[None]
