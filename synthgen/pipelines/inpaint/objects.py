"""The objects of a batch that are generated, and the attempts at them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.layouts.base import Layout
from synthgen.pipelines.inpaint.collage import Collage
from synthgen.pipelines.inpaint.crops import Crop
from synthgen.pipelines.inpaint.fitting import fit_object, measure_extent

FindFailed = Callable[[Sequence[NDArray[np.uint8]], Sequence[Layout]], Sequence[NDArray[np.bool_]]]
"""Returns which boxes of each image fail, from images (H, W, 3) and their layouts."""


@dataclass(frozen=True, eq=False)
class WantedObject:
    """An object to generate.

    Attributes:
        image: index of the image in the batch.
        layout: the object's box alone.
        prompt, negative: rows of the tables of conditions.
        generator: for its noise, so that it does not depend on the rest of the batch.
    """

    image: int
    layout: Layout
    crop: Crop
    prompt: int
    negative: int
    generator: torch.Generator


@dataclass(eq=False)
class Attempt:
    """A generated object.

    Attributes:
        after: (h, w, 3), the enlarged crop with the object.
        mask: (h, w), the object; None if it was not found.
        passes: whether it was found and, if there is a verifier, has not failed.
    """

    object: WantedObject
    after: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None
    passes: bool

    def label(self) -> Layout:
        """Return the layout of the crop, with a box around the object."""
        assert self.mask is not None
        width, height = self.object.crop.size
        boxes = measure_extent(self.mask)[None].astype(np.float32)
        return replace(self.object.layout, width=width, height=height, boxes=boxes)

    def paste(self, collage: Collage) -> None:
        """Paste the object, or its whole area if it was not found."""
        crop = self.object.crop
        mask = self.mask
        if mask is None:
            mask = crop.draw_area(1) >= 0.5
            extent = crop.enlarge(crop.box)
        else:
            extent = measure_extent(mask)
        collage.cutouts[crop.number] = fit_object(crop, self.after, mask, extent, collage.size)


def cut_surroundings(
    collages: Sequence[Collage], objects: Sequence[WantedObject]
) -> dict[WantedObject, NDArray[np.uint8]]:
    """Return the enlarged crop (h, w, 3) of each object, without it and what is in front of it.

    A crop that shows more than its window has no objects at all, because they would be too small.
    """
    drawn: dict[tuple[int, int | None], NDArray[np.uint8]] = {}
    surroundings = {}
    for each in objects:
        collage = collages[each.image]
        number = each.crop.number
        if not each.crop.shows_window:
            surroundings[each] = each.crop.cut(collage.background)
            continue
        below = number if number in collage.cutouts else None
        key = (each.image, below)
        if key not in drawn:
            drawn[key] = collage.draw(below)
        surroundings[each] = each.crop.cut(drawn[key])
    return surroundings
