"""The overlaps of boxes, which the tests of several samplers count."""

import numpy as np

from synthgen.layouts.base import Boxes


def count_overlapping_pairs(boxes: Boxes, gap: float = 0.0) -> int:
    """Return how many pairs of boxes (N, 4) xyxy are less than `gap` px apart on both axes."""
    low = boxes[:, :2].astype(np.float64)
    high = boxes[:, 2:].astype(np.float64)
    reach = high + gap - 1e-3
    starts_before_end = low[:, None] < reach[None]
    is_near = (starts_before_end & starts_before_end.transpose(1, 0, 2)).all(2)
    return int((is_near.sum() - len(boxes)) // 2)
