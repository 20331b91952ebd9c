"""Boxes follow resize, crop and flip: what a box shows is the same before and after."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.layouts.base import Layout
from synthgen.scenes.scene import Scene
from synthgen.training.augmentation import Picture, crop_scene, fitted, flipped, resized
from synthgen.training.dataset_scenes import scene_of


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Scene, Picture]:
    """A black picture with one rectangle of a colour of its own for each box, on whole pixels; boxes do not overlap."""
    width, height = draw(st.integers(20, 70)), draw(st.integers(20, 70))
    picture, boxes = np.zeros((height, width, 3), np.uint8), []
    for k in range(draw(st.integers(0, 3))):  # one box in each third
        low, high = k * width // 3, (k + 1) * width // 3
        x0 = draw(st.integers(low, high - 3))
        x1 = draw(st.integers(x0 + 2, high - 1))
        y0 = draw(st.integers(0, height - 3))
        y1 = draw(st.integers(y0 + 2, height))
        picture[y0:y1, x0:x1, k] = 255
        boxes.append([x0, y0, x1, y1])
    names = ("dog", "cat", "cow")[: len(boxes)]
    layout = Layout(
        width, height, np.array(boxes, np.float32).reshape(-1, 4), names, names, caption="words"
    )
    return Scene(layout, "words"), picture


def extent(picture: Picture, channel: int) -> list[int] | None:
    """The box (xyxy, px) of what has the colour of a box; None if nothing has."""
    rows, columns = (np.flatnonzero((picture[..., channel] > 127).any(axis)) for axis in (1, 0))
    return (
        None
        if not len(rows)
        else [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    )


@settings(max_examples=150, deadline=None)
@given(scenes(), st.integers(8, 64), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2**32))
def test_crop_and_flip_are_exact(
    pair: tuple[Scene, Picture], side: int, flip: float, seed: int
) -> None:
    scene, picture = pair
    new, crop = fitted(scene, picture, side, False, flip, np.random.default_rng(seed))
    assert crop.shape == (new.layout.height, new.layout.width, 3)
    assert crop.shape[:2] == tuple(min(side, n) for n in picture.shape[:2])
    kept = dict(zip(new.layout.categories, new.layout.boxes.tolist(), strict=True))
    for k, (name, box) in enumerate(zip(scene.layout.categories, scene.layout.boxes, strict=True)):
        shown, area = extent(crop, k), float((box[2:] - box[:2]).prod())
        inside = 0 if shown is None else (shown[2] - shown[0]) * (shown[3] - shown[1])
        assert (name in kept) == (inside >= 0.5 * area)
        if name in kept:
            assert kept[name] == shown
    assert new.phrases == new.layout.categories
    assert (new.prompt, new.layout.caption) == ("words", "words")


@settings(max_examples=100, deadline=None)
@given(scenes(), st.integers(1, 4))
def test_a_resize_by_a_whole_number_is_exact(pair: tuple[Scene, Picture], factor: int) -> None:
    scene, picture = pair
    new, large = resized(scene, picture, factor * min(picture.shape[:2]))
    assert large.shape[:2] == tuple(factor * n for n in picture.shape[:2])
    for k, box in enumerate(new.layout.boxes.tolist()):
        assert box == extent(large, k)


@settings(max_examples=100, deadline=None)
@given(scenes(), st.integers(16, 90))
def test_any_resize_has_its_boxes_within_a_pixel(pair: tuple[Scene, Picture], side: int) -> None:
    scene, picture = pair
    new, other = resized(scene, picture, side)
    assert min(other.shape[:2]) == side
    assert (new.layout.height, new.layout.width) == other.shape[:2]
    for k, box in enumerate(new.layout.boxes):
        shown = extent(other, k)
        if shown is not None and (box[2:] - box[:2]).min() >= 3:
            np.testing.assert_allclose(box, shown, atol=1)


def test_flipping_twice_is_nothing() -> None:
    layout = Layout(10, 5, np.array([[1, 2, 4, 5]], np.float32), ("dog",), ("a dog",))
    np.testing.assert_array_equal(flipped(Scene(layout, "")).layout.boxes, [[6, 2, 9, 5]])
    np.testing.assert_array_equal(flipped(flipped(Scene(layout, ""))).layout.boxes, layout.boxes)


def test_boxes_less_than_half_inside_go() -> None:
    boxes = [[0, 0, 40, 40], [50, 50, 20, 20], [10, 10, 20, 20]]
    annotations = [
        {"bbox": b, "category": "dog", "phrase": f"dog {i}"} for i, b in enumerate(boxes)
    ]
    record = {"width": 100, "height": 100, "prompt": "3 dog, sand", "annotations": annotations}
    scene = crop_scene(scene_of(json.dumps(record).encode()), 10, 10, 50, 50)
    assert scene.phrases == ("dog 0", "dog 2")  # of the second a quarter is inside
    np.testing.assert_array_equal(scene.layout.boxes, [[0, 0, 30, 30], [0, 0, 20, 20]])
    assert scene.background == "sand"
