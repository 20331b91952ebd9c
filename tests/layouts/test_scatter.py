"""The scatter sampler: exact count, gap, bounds, determinism, sizes, no preference for the border."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from synthgen.layouts.base import InfeasibleLayoutError, overlapping_pairs
from synthgen.layouts.placement import shelves
from synthgen.layouts.scatter import Spec, largest_feasible

HUNDRED = Spec(canvas=(1024, 1024), objects={"dog": 100}, size=(56, 88), gap=8)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Random recipes that fit by construction: their boxes' largest squares fill at most the canvas' grid."""
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
def test_exact_count_inside_and_apart(spec: Spec, seed: int) -> None:
    spec.check_feasible()
    layout = spec.sample(np.random.default_rng(seed))
    assert {name: layout.categories.count(name) for name in spec.objects} == {
        n: o.count[0] for n, o in spec.objects.items() if o.count
    }
    assert layout.boxes.dtype == np.float32
    assert (layout.boxes[:, :2] >= 0).all()
    assert (layout.boxes[:, 2:] <= spec.canvas).all()
    assert (layout.boxes[:, 2:] > layout.boxes[:, :2]).all()
    assert overlapping_pairs(layout.boxes, spec.gap) == 0


@settings(max_examples=20, deadline=None)
@given(specs(), st.integers(0, 2**32))
def test_same_seed_same_layout(spec: Spec, seed: int) -> None:
    first, second = (spec.sample(np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert first.categories == second.categories


def test_100_boxes_always_succeed_and_differ() -> None:
    layouts = [HUNDRED.sample(np.random.default_rng(i)) for i in range(200)]
    assert all(len(layout) == 100 and overlapping_pairs(layout.boxes, 8) == 0 for layout in layouts)
    assert len({layout.boxes.tobytes() for layout in layouts}) == 200


def test_longest_sides_are_uniform_in_size() -> None:
    sides = np.concatenate(
        [HUNDRED.draw_sides(["dog"] * 100, np.random.default_rng(i)).max(1) for i in range(20)]
    )
    assert stats.kstest(sides + 0.5, stats.uniform(56, 32).cdf).pvalue > 0.01
    placed = np.concatenate([HUNDRED.sample(np.random.default_rng(i)).boxes for i in range(20)])
    longest = (placed[:, 2:] - placed[:, :2]).max(1)
    assert stats.kstest(longest + 0.5, stats.uniform(56, 32).cdf).pvalue > 0.01


def test_no_preference_for_the_border() -> None:
    """Each tenth of the range that a box can take holds about a tenth of the boxes, the outermost too."""
    spec = Spec(canvas=(1024, 1024), objects={"dog": 40}, size=(56, 88), gap=8)
    u = []
    for i in range(150):
        boxes = spec.sample(np.random.default_rng(i)).boxes
        u.append(boxes[:, :2] / (1024 - (boxes[:, 2:] - boxes[:, :2])))
    for axis in np.concatenate(u).T:
        share = np.histogram(axis, 10, (0, 1))[0] / len(axis)
        assert share.min() > 0.08
        assert share.max() < 0.12


def test_evenly_spread() -> None:
    """Quarters of the canvas hold numbers nearer to each other than with independent places."""
    spec = Spec(canvas=(1024, 1024), objects={"dog": 100}, size=(20, 30), gap=4)
    counts = []
    for i in range(60):
        boxes = spec.sample(np.random.default_rng(i)).boxes
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        counts.append(
            np.histogram2d(centre[:, 0], centre[:, 1], bins=2, range=[[0, 1024], [0, 1024]])[
                0
            ].ravel()
        )
    assert np.var(counts) < 0.5 * 100 * 0.25 * 0.75


def test_what_cannot_fit_is_refused_with_the_largest_number() -> None:
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
    corners = shelves(sides, np.array([908.0, 908.0]), 1, np.random.default_rng(0))
    assert corners is not None
    assert (
        overlapping_pairs(np.concatenate([corners, corners + sides], 1).astype(np.float32), 1) == 0
    )
    assert shelves(sides, np.array([900.0, 908.0]), 1, np.random.default_rng(0)) is None


def test_largest_feasible_of_equal_squares_is_the_grid() -> None:
    spec = Spec(canvas=(200, 100), objects={"dog": 50}, size=(30, 30), aspect=(1, 1), gap=10)
    assert largest_feasible(spec, ["dog"] * 50) == 5 * 2


def test_no_boxes() -> None:
    layout = Spec(objects={"dog": 0}).sample(np.random.default_rng(0))
    assert len(layout) == 0
    assert layout.coverage() == 0
