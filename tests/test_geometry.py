"""Conversions of boxes can be reversed; IoU, clipping and suppression match their definitions."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from synthgen.geometry import (
    box_areas,
    box_centres,
    box_intersections,
    box_iou,
    box_sides,
    clip_boxes,
    non_maximum_suppression,
    shares_inside,
    voc_to_xyxy,
    xywh_to_voc,
    xywh_to_xyxy,
    xywh_to_yolo,
    xyxy_to_xywh,
    yolo_to_xywh,
)

WIDTH = 640
HEIGHT = 480
DTYPES = st.sampled_from([np.float32, np.float64])


@st.composite
def boxes(draw: st.DrawFn, most: int = 6, least: float = 0.25, dtype: Any = None) -> NDArray[Any]:
    """Boxes (N, 4) xyxy with sides of at least `least` px, some partly outside the image."""
    n = draw(st.integers(0, most))
    kind = draw(DTYPES) if dtype is None else dtype
    low = draw(arrays(np.float64, (n, 2), elements=st.floats(-300, 700, width=32)))
    size = draw(arrays(np.float64, (n, 2), elements=st.floats(least, 400, width=32)))
    return np.concatenate([low, low + size], 1).astype(kind)


@st.composite
def whole_boxes(draw: st.DrawFn) -> NDArray[Any]:
    """Boxes (N, 4) xyxy on whole pixels, some of them without area."""
    n = draw(st.integers(0, 6))
    low = draw(arrays(np.int64, (n, 2), elements=st.integers(0, 20)))
    size = draw(arrays(np.int64, (n, 2), elements=st.integers(0, 20)))
    return np.concatenate([low, low + size], 1).astype(draw(DTYPES))


def exact_iou(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the IoU of two boxes (4,) xyxy without rounding errors; 0 if both have no area."""
    ax0, ay0, ax1, ay1 = map(Fraction, one.tolist())
    bx0, by0, bx1, by1 = map(Fraction, other.tolist())
    width = max(Fraction(0), min(ax1, bx1) - max(ax0, bx0))
    height = max(Fraction(0), min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - width * height
    return float(width * height / union) if union > 0 else 0.0


@given(boxes())
def test_conversion_to_xywh_can_be_reversed(given_boxes: NDArray[Any]) -> None:
    converted = xyxy_to_xywh(given_boxes)
    assert converted.dtype == given_boxes.dtype
    np.testing.assert_array_equal(converted[:, 2:], box_sides(given_boxes))
    np.testing.assert_allclose(xywh_to_xyxy(converted), given_boxes, rtol=1e-6, atol=1e-4)
    for box, one in zip(given_boxes, converted, strict=True):
        np.testing.assert_array_equal(xyxy_to_xywh(box), one)


@given(boxes())
def test_conversion_to_yolo_can_be_reversed(given_boxes: NDArray[Any]) -> None:
    xywh = xyxy_to_xywh(given_boxes)
    converted = xywh_to_yolo(xywh, WIDTH, HEIGHT)
    assert converted.dtype == given_boxes.dtype
    centres = converted[:, :2] * [WIDTH, HEIGHT]
    np.testing.assert_allclose(centres, box_centres(given_boxes), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(yolo_to_xywh(converted, WIDTH, HEIGHT), xywh, rtol=1e-5, atol=1e-3)


@given(st.integers(0, 600), st.integers(0, 400), st.integers(1, 40), st.integers(1, 40))
def test_boxes_on_whole_pixels_are_the_same_in_voc(x: int, y: int, width: int, height: int) -> None:
    corners = xywh_to_voc((x, y, width, height))
    assert corners == (x + 1, y + 1, x + width, y + height)
    assert voc_to_xyxy(*corners) == (x, y, x + width, y + height)


@given(boxes(least=1 / 64, dtype=np.float64))
def test_voc_moves_an_edge_by_half_a_pixel_at_most(given_boxes: NDArray[Any]) -> None:
    inside = clip_boxes(given_boxes, WIDTH, HEIGHT)
    for box in inside[(box_sides(inside) > 0).all(1)]:
        x, y, width, height = xyxy_to_xywh(box).tolist()
        xmin, ymin, xmax, ymax = xywh_to_voc((x, y, width, height))
        assert 1 <= xmin <= xmax <= WIDTH
        assert 1 <= ymin <= ymax <= HEIGHT
        moved = np.abs(np.array(voc_to_xyxy(xmin, ymin, xmax, ymax)) - box)
        larger = np.tile(box_sides(box) >= 1, 2)
        assert (moved[larger] <= 0.5 + 1e-9).all()
        assert (moved < 1).all()


@given(boxes())
def test_areas_and_centres_follow_from_the_sides(given_boxes: NDArray[Any]) -> None:
    xywh = xyxy_to_xywh(given_boxes)
    np.testing.assert_array_equal(box_areas(given_boxes), xywh[:, 2] * xywh[:, 3])
    centres = xywh[:, :2] + xywh[:, 2:] / 2
    np.testing.assert_allclose(box_centres(given_boxes), centres, rtol=1e-5, atol=1e-3)


@given(boxes())
def test_clipped_boxes_lie_inside_and_boxes_inside_stay_the_same(given_boxes: NDArray[Any]) -> None:
    clipped = clip_boxes(given_boxes, WIDTH, HEIGHT)
    assert clipped.dtype == np.float64
    assert ((clipped >= 0) & (clipped <= [WIDTH, HEIGHT, WIDTH, HEIGHT])).all()
    assert (box_sides(clipped) >= 0).all()
    np.testing.assert_array_equal(clip_boxes(clipped, WIDTH, HEIGHT), clipped)
    corners = given_boxes.reshape(-1, 2, 2)
    lay_inside = ((corners >= 0) & (corners <= [WIDTH, HEIGHT])).all((1, 2))
    np.testing.assert_array_equal(clipped[lay_inside], given_boxes[lay_inside])


@given(boxes(), boxes())
def test_iou_equals_that_of_exact_arithmetic(some: NDArray[Any], others: NDArray[Any]) -> None:
    expected = np.zeros((len(some), len(others)))
    for i, one in enumerate(some):
        expected[i] = [exact_iou(one, other) for other in others]
    result = box_iou(some, others)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(result, box_iou(others, some).T)


@given(whole_boxes())
def test_iou_equals_that_of_counted_pixels(given_boxes: NDArray[Any]) -> None:
    maps = np.zeros((len(given_boxes), 41, 41), bool)
    for pixels, (x0, y0, x1, y1) in zip(maps, given_boxes.astype(int), strict=True):
        pixels[y0:y1, x0:x1] = True
    common = (maps[:, None] & maps[None]).sum((2, 3))
    united = (maps[:, None] | maps[None]).sum((2, 3))
    np.testing.assert_array_equal(box_intersections(given_boxes, given_boxes), common)
    expected = common / np.maximum(united, 1)
    np.testing.assert_allclose(box_iou(given_boxes, given_boxes), expected, rtol=1e-12)


@given(boxes(), boxes())
def test_shares_inside_equal_the_areas_of_clipped_boxes(
    given_boxes: NDArray[Any], windows: NDArray[Any]
) -> None:
    shares = shares_inside(given_boxes, windows)
    assert shares.shape == (len(given_boxes), len(windows))
    assert ((shares >= 0) & (shares <= 1 + 1e-5)).all()
    for k, (x0, y0, x1, y1) in enumerate(windows):
        moved = clip_boxes(given_boxes - np.array([x0, y0, x0, y0]), x1 - x0, y1 - y0)
        expected = box_areas(moved) / box_areas(given_boxes)
        np.testing.assert_allclose(shares[:, k], expected, rtol=1e-2, atol=1e-4)


def test_shares_inside_for_known_numbers() -> None:
    some = np.array([[0, 0, 4, 4], [2, 2, 6, 6], [8, 8, 9, 9]], np.float64)
    np.testing.assert_allclose(shares_inside(some, [(0, 0, 4, 4)])[:, 0], [1, 0.25, 0])


@given(boxes(most=12), st.floats(0, 0.9))
def test_suppression_drops_boxes_that_overlap_better_ones(
    given_boxes: NDArray[Any], threshold: float
) -> None:
    remaining = non_maximum_suppression(given_boxes, threshold)
    overlap = box_iou(given_boxes, given_boxes)
    assert remaining[:1] == [0][: len(given_boxes)]
    assert remaining == sorted(remaining)
    for i in range(len(given_boxes)):
        better = [k for k in remaining if k < i]
        assert (i in remaining) == (not (overlap[i, better] > threshold).any())


def test_suppression_keeps_the_best() -> None:
    some = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]], np.float32)
    assert non_maximum_suppression(some) == [0, 2]


FUNCTIONS = [box_sides, box_areas, box_centres, xyxy_to_xywh, xywh_to_xyxy]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_accept_no_boxes(function: Any) -> None:
    assert len(function(np.zeros((0, 4), np.float32))) == 0
    assert box_iou(np.zeros((0, 4)), np.ones((3, 4))).shape == (0, 3)
    assert non_maximum_suppression(np.zeros((0, 4))) == []
