"""Crops of the boxes of images, for verifiers that look at boxes one by one."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from synthgen.geometry import box_centres, box_sides
from synthgen.layouts.base import Layout
from synthgen.verification.base import Verdict

AT_ONCE = 64  # crops


def crops_of(
    images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout], context: float
) -> list[Image.Image]:
    """The square round each box of each picture, with `context` of its longer side on each side, cut at the picture's edge."""
    crops = []
    for image, layout in zip(images, layouts, strict=True):
        boxes = layout.boxes.astype(np.float64)
        halves = box_sides(boxes).max(1) * (0.5 + context)
        for (x, y), half in zip(box_centres(boxes).tolist(), halves.tolist(), strict=True):
            left, top = max(0, round(x - half)), max(0, round(y - half))
            crops.append(
                Image.fromarray(
                    image[
                        top : max(top + 1, round(y + half)), left : max(left + 1, round(x + half))
                    ]
                )
            )
    return crops


def batches(crops: Sequence[Image.Image]) -> list[Sequence[Image.Image]]:
    """Crops, so many at a time."""
    return [crops[k : k + AT_ONCE] for k in range(0, len(crops), AT_ONCE)]


def verdicts(scores: Tensor, layouts: Sequence[Layout]) -> list[Verdict]:
    """The scores of all boxes, a verdict for each picture; such verifiers find nothing of their own."""
    parts = scores.numpy().astype(np.float32)
    ends = np.cumsum([len(layout) for layout in layouts])[:-1]
    return [
        Verdict(part, None, None, np.zeros((0, 4), np.float32)) for part in np.split(parts, ends)
    ]
