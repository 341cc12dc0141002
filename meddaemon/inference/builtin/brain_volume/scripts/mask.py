"""From the probability of brain to one solid mask."""

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

CORNERS = ndimage.generate_binary_structure(3, 3)


class SolidMaskd(MapTransform):  # type: ignore[misc]
    """Keep what is above `threshold`, of that the largest component (26 neighbours), and fill its holes (6).

    Tensors are (1, x, y, z). An empty mask stays empty.
    """

    def __init__(self, keys: KeysCollection, threshold: float = 0.5) -> None:
        super().__init__(keys)
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        """Return the data with a mask of 0 and 1 (uint8) under each key."""
        result = dict(data)
        for key in self.key_iterator(result):
            mask = result[key][0].cpu().numpy() > self.threshold
            solid = torch.from_numpy(solid_mask(mask)[np.newaxis])
            result[key] = MetaTensor(solid, meta=result[key].meta)
        return result


def solid_mask(mask: np.ndarray) -> np.ndarray:
    """Return the largest component of `mask` without its holes, as 0 and 1 in uint8."""
    solid = np.zeros(mask.shape, dtype=np.uint8)
    components, count = ndimage.label(mask, structure=CORNERS)
    if count == 0:
        return solid
    largest = int(np.bincount(components.ravel())[1:].argmax()) + 1
    # The holes of a component lie within its bounding box: nothing outside needs to be looked at.
    inside = ndimage.find_objects(components)[largest - 1]
    solid[inside] = ndimage.binary_fill_holes(components[inside] == largest)
    return solid
