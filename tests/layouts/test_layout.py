"""Tests of `Layout`."""

import numpy as np
import pytest

from synthgen.layouts.base import Layout
from tests.layouts.overlaps import count_overlapping_pairs


def test_boxes_must_match_categories() -> None:
    with pytest.raises(ValueError, match="do not match 2 categories"):
        Layout(10, 10, np.zeros((1, 4), np.float32), ("dog", "cat"))


def test_coverage_is_the_share_of_the_canvas() -> None:
    boxes = np.array([[0, 0, 5, 10], [5, 0, 10, 5]], np.float32)
    assert Layout(10, 10, boxes, ("dog", "dog")).coverage() == pytest.approx(0.75)


@pytest.mark.parametrize(("gap", "pairs"), [(0, 0), (4, 0), (4.5, 1)])
def test_pairs_of_boxes_nearer_than_the_gap_are_counted(gap: float, pairs: int) -> None:
    boxes = np.array([[0, 0, 10, 10], [14, 2, 20, 8], [40, 40, 50, 50]], np.float32)
    assert count_overlapping_pairs(boxes, gap) == pairs
