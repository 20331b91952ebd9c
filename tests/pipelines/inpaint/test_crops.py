"""Crops around boxes, and the rounds in which their objects are generated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthgen.layouts.base import Layout
from synthgen.pipelines.inpaint.crops import (
    LEAST_SCALE,
    MOST_SCALE,
    Crop,
    assign_rounds,
    order_far_to_near,
    place_crops,
)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    width = draw(st.integers(8, 300))
    height = draw(st.integers(8, 300))
    boxes = []
    for _ in range(draw(st.integers(0, 8))):
        x = sorted(draw(st.lists(st.floats(0, width, width=32), min_size=2, max_size=2)))
        y = sorted(draw(st.lists(st.floats(0, height, width=32), min_size=2, max_size=2)))
        if x[1] - x[0] >= 1 and y[1] - y[0] >= 1:
            boxes.append([x[0], y[0], x[1], y[1]])
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Layout(width, height, array, ("dog",) * len(array))


@settings(deadline=None)
@given(layouts(), st.floats(0.2, 1), st.floats(0, 0.5), st.sampled_from([32, 128]))
def test_a_crop_is_inside_the_canvas_and_contains_its_area(
    layout: Layout, share: float, outset: float, side: int
) -> None:
    crops = place_crops(layout, share, outset, side, 16)
    assert [crop.number for crop in crops] == list(range(len(layout)))
    for crop in crops:
        x0, y0, x1, y1 = crop.window
        assert 0 <= x0 < x1 <= layout.width
        assert 0 <= y0 < y1 <= layout.height
        # A float32 box can end a little beside the whole px that the window ends at.
        assert (crop.box[:2] >= np.array([x0, y0]) - 1).all()
        assert (crop.box[2:] <= np.array([x1, y1]) + 1).all()
        scale = crop.size[0] / (x1 - x0)
        assert crop.shows_window or scale > MOST_SCALE * 0.9
        u0, v0, u1, v1 = crop.view
        assert 0 <= u0 <= x0 < x1 <= u1 <= layout.width
        assert 0 <= v0 <= y0 < y1 <= v1 <= layout.height
        assert (crop.area[:2] <= crop.box[:2]).all()
        assert (crop.area[2:] >= crop.box[2:]).all()
        assert crop.size[0] % 16 == crop.size[1] % 16 == 0
        wanted = np.ceil(float((crop.box[2:] - crop.box[:2]).max()) / share)
        if x1 - x0 == y1 - y0 == wanted and wanted <= side / LEAST_SCALE:
            assert crop.size == (side, side)
        elif wanted > side / LEAST_SCALE:
            assert abs(crop.size[0] - (x1 - x0)) <= 16
            assert abs(crop.size[1] - (y1 - y0)) <= 16


def test_a_box_is_enlarged_to_the_share_of_its_crop() -> None:
    layout = Layout(400, 300, np.array([[100, 100, 130, 112]], np.float32), ("dog",))
    (crop,) = place_crops(layout, 0.5, 0.1, 80, 8)
    assert crop.window == crop.view == (85, 76, 145, 136)
    assert crop.size == (80, 80)
    np.testing.assert_allclose(crop.enlarge(crop.box), [20, 32, 60, 48])
    np.testing.assert_allclose(crop.area, [97, 98.8, 133, 113.2])
    image = np.zeros((300, 400, 3), np.uint8)
    image[100:112, 100:130] = 200
    cut = crop.cut(image)
    assert cut.shape == (80, 80, 3)
    assert (cut[36:44, 24:56] >= 198).all()
    assert (cut[:26] == 0).all()


@pytest.mark.parametrize(
    ("box", "view"),
    [
        ((100, 100, 130, 112), (55, 46, 175, 166)),
        ((0, 2, 24, 12), (0, 0, 120, 120)),
        ((376, 280, 400, 300), (280, 180, 400, 300)),
    ],
)
def test_a_small_box_is_surrounded_by_the_background_at_its_own_size(
    box: tuple[int, int, int, int], view: tuple[int, int, int, int]
) -> None:
    layout = Layout(400, 300, np.array([box], np.float32), ("dog",))
    (crop,) = place_crops(layout, 0.5, 0.1, 120, 8)
    assert crop.size == (120, 120)
    assert crop.view == view
    assert not crop.shows_window
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    x0, y0, x1, y1 = view
    np.testing.assert_array_equal(crop.cut(image), image[y0:y1, x0:x1])


def test_the_area_covers_cells_in_part() -> None:
    """The reference counts the samples of a fine grid."""
    box = np.array([13.0, 7.0, 30.0, 41.0])
    window = (4, 0, 44, 60)
    crop = Crop(0, box, np.array([11.3, 5.9, 31.7, 44.2]), window, (80, 120), window)
    drawn = crop.draw_area(8)
    assert drawn.shape == (15, 10)
    fine = 100
    x = (np.arange(10 * fine) + 0.5) / fine * 8
    y = (np.arange(15 * fine) + 0.5) / fine * 8
    x0, y0, x1, y1 = (crop.area - [4, 0, 4, 0]) * 2
    inside = np.outer((y >= y0) & (y < y1), (x >= x0) & (x < x1))
    expected = inside.reshape(15, fine, 10, fine).mean((1, 3))
    np.testing.assert_allclose(drawn, expected, atol=0.01)


def overlap(first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
    """Return whether two boxes (4,) have a common area."""
    low = np.maximum(first[:2], second[:2])
    high = np.minimum(first[2:], second[2:])
    return bool((low < high).all())


@settings(deadline=None)
@given(layouts(), st.floats(0, 0.5), st.booleans())
def test_objects_of_a_round_do_not_overlap(layout: Layout, outset: float, has_depth: bool) -> None:
    crops = place_crops(layout, 0.6, outset, 64, 16)
    if has_depth:
        depth = np.random.default_rng(0).random(len(layout)).astype(np.float32)
        layout = Layout(layout.width, layout.height, layout.boxes, layout.categories, depth=depth)
    order = order_far_to_near(layout)
    rounds = assign_rounds(crops, order)
    assert sorted(set(rounds)) == list(range(max(rounds, default=-1) + 1))
    for place, far in enumerate(order):
        for near in order[place + 1 :]:
            if overlap(crops[far].area, crops[near].area):
                assert rounds[far] != rounds[near]
            if overlap(crops[far].box, crops[near].box):
                assert rounds[far] < rounds[near]


@pytest.mark.parametrize(("depth", "order"), [(None, [1, 2, 0]), ([2, 1, 3], [2, 0, 1])])
def test_the_order_is_that_of_the_depths_or_of_the_lower_edges(
    depth: list[float] | None, order: list[int]
) -> None:
    boxes = np.array([[0, 0, 9, 60], [0, 10, 9, 20], [0, 5, 9, 50]], np.float32)
    distances = None if depth is None else np.array(depth, np.float32)
    layout = Layout(64, 64, boxes, ("dog",) * 3, depth=distances)
    assert order_far_to_near(layout) == order
