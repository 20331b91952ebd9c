"""Crops of boxes, for verifiers that look at one box at a time."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from synthgen.geometry import box_centres, box_sides
from synthgen.layouts.base import Layout
from synthgen.verification.base import Verdict

BATCH_SIZE = 64  # crops


def crop_boxes(
    images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout], context: float
) -> list[Image.Image]:
    """Return a square crop around each box of each image, clipped to the image.

    Args:
        images: (H, W, 3) each.
        layouts: the boxes of the images.
        context: share of a box's longer side that is added on each side.
    """
    crops = []
    for image, layout in zip(images, layouts, strict=True):
        boxes = layout.boxes.astype(np.float64)
        halves = box_sides(boxes).max(1) * (0.5 + context)
        for (x, y), half in zip(box_centres(boxes).tolist(), halves.tolist(), strict=True):
            left = max(0, round(x - half))
            top = max(0, round(y - half))
            right = max(left + 1, round(x + half))
            bottom = max(top + 1, round(y + half))
            crops.append(Image.fromarray(image[top:bottom, left:right]))
    return crops


def split_into_batches(crops: Sequence[Image.Image]) -> list[Sequence[Image.Image]]:
    """Return the crops in batches of at most BATCH_SIZE."""
    return [crops[k : k + BATCH_SIZE] for k in range(0, len(crops), BATCH_SIZE)]


def build_verdicts(scores: Tensor, layouts: Sequence[Layout]) -> list[Verdict]:
    """Return a verdict for each image from the scores of all boxes, without detections."""
    ends = np.cumsum([len(layout) for layout in layouts])[:-1]
    verdicts = []
    for image_scores in np.split(scores.numpy().astype(np.float32), ends):
        verdicts.append(Verdict(image_scores, None, None, np.zeros((0, 4), np.float32)))
    return verdicts
