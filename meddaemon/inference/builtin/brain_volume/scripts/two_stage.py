"""Brain extraction in two stages: find the box of the head that holds the brain, then segment inside it.

The algorithm as published with deepbet (L. Fisch et al., doi:10.21105/joss.05098), version 1.0.2, written anew.
Everything is in single precision and in the order of the original, because a mask is compared voxel for voxel.
"""

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate

COARSE_SHAPE = (128, 128, 128)
FINE_SHAPE = (256, 256, 256)
QUANTILES = (0.005, 0.995)
MARGIN = 0.1
"""Added on each side, as a part of the size of the box."""
LEAST_SHARE = 0.02
"""A slice of the coarse mask belongs to the box when more than this share of it is brain."""
THRESHOLD = 0.5

# Mean and deviation that the networks were trained with: grey values of ImageNet.
TRAINED_MEAN, TRAINED_DEVIATION = 0.449, 0.226

Network = Callable[..., Tensor]


class TwoStageInferer(Inferer):  # type: ignore[misc]
    """Runs `box_network` on the whole volume and the network it is called with inside the box that was found.

    Input: (1, 1, x, y, z), RAS, any grid. Output of the same shape: the probability of brain, 0 outside the box.
    """

    def __init__(self, box_network: Network) -> None:
        super().__init__()
        self.box_network = box_network

    def __call__(self, inputs: Tensor, network: Network, *_args: Any, **_kwargs: Any) -> Tensor:
        """Return the probability of brain for each voxel; all 0 where the first stage sees no brain."""
        volume = torch.nan_to_num(torch.as_tensor(inputs).as_subclass(Tensor))
        probability = torch.zeros_like(volume)
        coarse = interpolate(volume, COARSE_SHAPE, mode="nearest-exact")
        low, high = (coarse.quantile(share) for share in QUANTILES)
        if not high > low:
            return probability
        seen = self.box_network(_normalised(coarse, low, high))[0, 1] > THRESHOLD
        box = _box_around(_largest_component(seen), volume.shape[2:])
        if box is None:
            return probability
        inside = (slice(None), slice(None), *box)
        fine = interpolate(volume[inside], FINE_SHAPE, mode="nearest-exact")
        brain = network(_normalised(fine, low, high))[:, 1:2]
        probability[inside] = interpolate(brain, probability[inside].shape[2:], mode="nearest-exact")
        return probability


def _normalised(volume: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clip to the quantiles and bring to the mean and deviation that the networks know."""
    scaled = ((volume - low) / (high - low)).clamp(min=0, max=1)
    return TRAINED_DEVIATION * ((scaled - scaled.mean()) / scaled.std()) + TRAINED_MEAN


def _largest_component(mask: Tensor) -> Tensor:
    """Return the largest of the components that touch by face, edge or corner; empty for an empty mask."""
    components, count = ndimage.label(mask.cpu().numpy(), structure=ndimage.generate_binary_structure(3, 3))
    if count == 0:
        return torch.zeros_like(mask)
    sizes = torch.from_numpy(components).flatten().bincount(minlength=count + 1)
    largest = int(sizes[1:].argmax()) + 1
    return torch.from_numpy(components == largest).to(mask.device)


def _box_around(mask: Tensor, shape: torch.Size) -> tuple[slice, ...] | None:
    """Return the box around a coarse mask with its margin, on the grid of `shape`; None for too small a mask."""
    values = mask.float()
    extents = [torch.where(values.mean(axes) > LEAST_SHARE)[0].cpu() for axes in ((1, 2), (0, 2), (0, 1))]
    if any(extent.numel() == 0 for extent in extents):
        return None
    scale = torch.tensor(shape) / torch.tensor(mask.shape)
    centre = scale * torch.tensor([(extent.max() + 1 + extent.min()) / 2 for extent in extents])
    size = scale * torch.tensor([(extent.max() + 1) - extent.min() for extent in extents])
    size = (1 + 2 * (MARGIN * torch.ones(3))) * size
    centre, size = centre.round(), size.round()
    return tuple(
        slice(max(0, int(middle - extent / 2)), min(length, int(middle + extent / 2)))
        for middle, extent, length in zip(centre, size, shape, strict=True)
    )
