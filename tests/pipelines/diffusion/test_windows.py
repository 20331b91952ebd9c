"""Windows around boxes and over the background."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.pipelines.diffusion.windows import (
    extend_boxes,
    place_background_windows,
    place_object_windows,
)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([2, 4, 8]), st.sampled_from([1, 4, 8]))
def test_object_windows_contain_their_boxes(seed: int, factor: int, multiple: int) -> None:
    rng = np.random.default_rng(seed)
    least = multiple * int(rng.integers(1, 4))
    canvas = (int(factor * rng.integers(least + 4, 60)), int(factor * rng.integers(least + 4, 60)))
    low = rng.random((6, 2)) * (np.array(canvas) * 0.6)
    high = low + rng.random((6, 2)) * (np.array(canvas) * 0.3) + 1
    boxes = np.concatenate([low, high], 1).astype(np.float32)
    windows = place_object_windows(boxes, canvas, factor, multiple, least, 0.1)
    sides = windows[:, 2:] - windows[:, :2]
    assert (sides % multiple == 0).all()
    assert (sides >= least).all()
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2:] <= np.array(canvas) // factor).all()
    wanted = (boxes[:, 2:] - boxes[:, :2]) * 1.2 / factor
    largest = np.array(canvas) // factor // multiple * multiple
    fits = (wanted <= largest).all(1)
    assert (windows[fits, :2] * factor <= boxes[fits, :2] + factor).all()
    assert (windows[fits, 2:] * factor >= boxes[fits, 2:] - factor).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 6), st.floats(0, 0.8))
def test_background_windows_cover_every_cell_and_overlap(
    w: int, h: int, side: int, overlap: float
) -> None:
    factor = 4
    multiple = 4
    side = 4 * side
    canvas = (max(w, 4) * factor, max(h, 4) * factor)
    windows = place_background_windows(canvas, factor, multiple, side, overlap)
    covered = np.zeros((canvas[1] // factor, canvas[0] // factor), int)
    for x0, y0, x1, y1 in windows:
        assert (x1 - x0) % multiple == 0
        assert (y1 - y0) % multiple == 0
        covered[y0:y1, x0:x1] += 1
    assert covered.min() >= 1
    for axis in (0, 1):
        starts = np.unique(windows[:, axis])
        size = int(windows[0, axis + 2] - windows[0, axis])
        assert (np.diff(starts) <= size * (1 - overlap) + 1).all()


def test_edges_move_outwards_by_shares_of_the_sides_and_stop_at_the_canvas() -> None:
    boxes = np.array([[20, 30, 40, 70], [0, 0, 50, 100]], np.float32)
    extended = extend_boxes(boxes, (50, 100), (0.1, 0.2, 0.3, 0.05))
    assert extended.dtype == np.float32
    np.testing.assert_allclose(extended, [[18, 22, 46, 72], [0, 0, 50, 100]], rtol=1e-6)


def test_no_outset_changes_no_bit_of_a_box() -> None:
    boxes = (np.random.default_rng(0).random((50, 4)) * 64).astype(np.float32)
    np.testing.assert_array_equal(extend_boxes(boxes, (64, 64), (0, 0, 0, 0)), boxes)
