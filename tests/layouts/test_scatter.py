"""Layouts of the sampler `scatter` have the requested counts, gap and sizes, and are even."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from synthgen.geometry import box_centres, box_sides
from synthgen.layouts.base import InfeasibleLayoutError
from synthgen.layouts.placement import place_on_shelves
from synthgen.layouts.scatter import Spec, count_feasible
from tests.layouts.overlaps import count_overlapping_pairs

HUNDRED = Spec(canvas=(1024, 1024), objects={"dog": 100}, size=(56, 88), gap=8)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Random recipes that fit by construction: boxes of the largest size fit in a grid."""
    least = draw(st.integers(4, 40))
    size = (least, least + draw(st.integers(0, 40)))
    gap = draw(st.integers(0, 12))
    canvas = tuple(draw(st.integers(size[1] + 16, 500)) for _ in range(2))
    room = int((canvas[0] + gap) // (size[1] + gap)) * int((canvas[1] + gap) // (size[1] + gap))
    count = draw(st.integers(0, room))
    aspect = (draw(st.floats(0.3, 1)), draw(st.floats(1, 3)))
    return Spec(
        canvas=canvas,
        objects={"dog": count // 2, "cat": count - count // 2},
        size=size,
        aspect=aspect,
        gap=gap,
    )


@settings(max_examples=80, deadline=None)
@given(specs(), st.integers(0, 2**32))
def test_layouts_have_exactly_the_boxes_inside_the_canvas_and_apart(spec: Spec, seed: int) -> None:
    spec.check_feasible()
    layout = spec.sample(np.random.default_rng(seed))
    for name, o in spec.objects.items():
        assert o.count is not None
        assert layout.categories.count(name) == o.count[0]
    assert layout.boxes.dtype == np.float32
    assert (layout.boxes[:, :2] >= 0).all()
    assert (layout.boxes[:, 2:] <= spec.canvas).all()
    assert (layout.boxes[:, 2:] > layout.boxes[:, :2]).all()
    assert count_overlapping_pairs(layout.boxes, spec.gap) == 0


@settings(max_examples=20, deadline=None)
@given(specs(), st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_layout(spec: Spec, seed: int) -> None:
    first = spec.sample(np.random.default_rng(seed))
    second = spec.sample(np.random.default_rng(seed))
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert first.categories == second.categories


def test_100_boxes_always_succeed_and_differ() -> None:
    layouts = [HUNDRED.sample(np.random.default_rng(i)) for i in range(200)]
    for layout in layouts:
        assert len(layout) == 100
        assert count_overlapping_pairs(layout.boxes, 8) == 0
    assert len({layout.boxes.tobytes() for layout in layouts}) == 200


def test_longer_sides_are_uniform() -> None:
    sampled = []
    placed = []
    for i in range(20):
        sampled.append(HUNDRED.sample_sides(["dog"] * 100, np.random.default_rng(i)))
        placed.append(box_sides(HUNDRED.sample(np.random.default_rng(i)).boxes))
    for sides in (sampled, placed):
        longest = np.concatenate(sides).max(1)
        assert stats.kstest(longest + 0.5, stats.uniform(56, 32).cdf).pvalue > 0.01


def test_boxes_do_not_gather_at_the_border() -> None:
    """Each tenth of the possible positions has about a tenth of the boxes, also at the border."""
    spec = Spec(canvas=(1024, 1024), objects={"dog": 40}, size=(56, 88), gap=8)
    u = []
    for i in range(150):
        boxes = spec.sample(np.random.default_rng(i)).boxes
        u.append(boxes[:, :2] / (1024 - (boxes[:, 2:] - boxes[:, :2])))
    for axis in np.concatenate(u).T:
        share = np.histogram(axis, 10, (0, 1))[0] / len(axis)
        assert share.min() > 0.08
        assert share.max() < 0.12


def test_boxes_are_spread_evenly() -> None:
    """The numbers of boxes in quarters of the canvas vary less than for independent positions."""
    spec = Spec(canvas=(1024, 1024), objects={"dog": 100}, size=(20, 30), gap=4)
    counts = []
    for i in range(60):
        boxes = spec.sample(np.random.default_rng(i)).boxes
        x, y = box_centres(boxes).T
        histogram, _, _ = np.histogram2d(x, y, bins=2, range=[[0, 1024], [0, 1024]])
        counts.append(histogram)
    assert np.var(counts) < 0.5 * 100 * 0.25 * 0.75


def test_too_many_boxes_are_refused_with_the_largest_number() -> None:
    with pytest.raises(
        InfeasibleLayoutError, match=r"300 boxes of 56-88 px with gap 8 do not fit 1024 x 1024"
    ) as caught:
        Spec(objects={"dog": 300}).check_feasible()
    most = int(str(caught.value).rsplit(" ", 1)[1])
    assert 100 <= most < 300
    fitting = Spec(objects={"dog": most})
    fitting.check_feasible()
    for i in range(5):
        assert len(fitting.sample(np.random.default_rng(i))) == most


def test_dense_layouts_fall_back_to_shelves() -> None:
    sides = np.full((81, 2), 100.0)
    corners = place_on_shelves(sides, np.array([908.0, 908.0]), 1, np.random.default_rng(0))
    assert corners is not None
    boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
    assert count_overlapping_pairs(boxes, 1) == 0
    assert place_on_shelves(sides, np.array([900.0, 908.0]), 1, np.random.default_rng(0)) is None


def test_the_largest_number_of_equal_squares_is_that_of_grid_cells() -> None:
    spec = Spec(canvas=(200, 100), objects={"dog": 50}, size=(30, 30), aspect=(1, 1), gap=10)
    assert count_feasible(spec, ["dog"] * 50) == 5 * 2


def test_a_layout_can_have_no_boxes() -> None:
    layout = Spec(objects={"dog": 0}).sample(np.random.default_rng(0))
    assert len(layout) == 0
    assert layout.coverage() == 0
