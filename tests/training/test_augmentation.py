"""Resizing, cropping and flipping: the content of each box is the same before and after."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.layouts.base import Layout
from synthgen.scenes.scene import Scene
from synthgen.training.augmentation import (
    ImageArray,
    augment,
    crop_scene,
    flip_scene,
    resize_scene,
)
from synthgen.training.dataset_scenes import parse_scene


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Scene, ImageArray]:
    """Generate a black image with a rectangle of another colour for each box.

    The boxes are on whole pixels and do not overlap.
    """
    width = draw(st.integers(20, 70))
    height = draw(st.integers(20, 70))
    image = np.zeros((height, width, 3), np.uint8)
    boxes = []
    for k in range(draw(st.integers(0, 3))):  # one box in each third
        low = k * width // 3
        high = (k + 1) * width // 3
        x0 = draw(st.integers(low, high - 3))
        x1 = draw(st.integers(x0 + 2, high - 1))
        y0 = draw(st.integers(0, height - 3))
        y1 = draw(st.integers(y0 + 2, height))
        image[y0:y1, x0:x1, k] = 255
        boxes.append([x0, y0, x1, y1])
    names = ("dog", "cat", "cow")[: len(boxes)]
    layout = Layout(
        width, height, np.array(boxes, np.float32).reshape(-1, 4), names, names, caption="words"
    )
    return Scene(layout, "words"), image


def find_extent(image: ImageArray, channel: int) -> list[int] | None:
    """Return the box (xyxy, px) of the pixels with the colour of a box; None without any."""
    is_coloured = image[..., channel] > 127
    rows = np.flatnonzero(is_coloured.any(1)).tolist()
    columns = np.flatnonzero(is_coloured.any(0)).tolist()
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if rows else None


@settings(max_examples=150, deadline=None)
@given(scenes(), st.integers(8, 64), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2**32))
def test_boxes_follow_crop_and_flip_exactly(
    pair: tuple[Scene, ImageArray], side: int, flip: float, seed: int
) -> None:
    scene, image = pair
    new, crop = augment(scene, image, side, False, flip, np.random.default_rng(seed))
    assert crop.shape == (new.layout.height, new.layout.width, 3)
    assert crop.shape[:2] == tuple(min(side, n) for n in image.shape[:2])
    kept = dict(zip(new.layout.categories, new.layout.boxes.tolist(), strict=True))
    for k, (name, box) in enumerate(zip(scene.layout.categories, scene.layout.boxes, strict=True)):
        extent = find_extent(crop, k)
        area = float((box[2:] - box[:2]).prod())
        inside = 0 if extent is None else (extent[2] - extent[0]) * (extent[3] - extent[1])
        assert (name in kept) == (inside >= 0.5 * area)
        if name in kept:
            assert kept[name] == extent
    assert new.phrases == new.layout.categories
    assert (new.prompt, new.layout.caption) == ("words", "words")


@settings(max_examples=100, deadline=None)
@given(scenes(), st.integers(1, 4))
def test_boxes_follow_a_resize_by_a_whole_number_exactly(
    pair: tuple[Scene, ImageArray], factor: int
) -> None:
    scene, image = pair
    new, large = resize_scene(scene, image, factor * min(image.shape[:2]))
    assert large.shape[:2] == tuple(factor * n for n in image.shape[:2])
    for k, box in enumerate(new.layout.boxes.tolist()):
        assert box == find_extent(large, k)


@settings(max_examples=100, deadline=None)
@given(scenes(), st.integers(16, 90))
def test_boxes_follow_any_resize_within_a_pixel(pair: tuple[Scene, ImageArray], side: int) -> None:
    scene, image = pair
    new, resized = resize_scene(scene, image, side)
    assert min(resized.shape[:2]) == side
    assert (new.layout.height, new.layout.width) == resized.shape[:2]
    for k, box in enumerate(new.layout.boxes):
        extent = find_extent(resized, k)
        if extent is not None and (box[2:] - box[:2]).min() >= 3:
            np.testing.assert_allclose(box, extent, atol=1)


def test_flipping_twice_changes_nothing() -> None:
    layout = Layout(10, 5, np.array([[1, 2, 4, 5]], np.float32), ("dog",), ("a dog",))
    flipped = flip_scene(Scene(layout, ""))
    np.testing.assert_array_equal(flipped.layout.boxes, [[6, 2, 9, 5]])
    np.testing.assert_array_equal(flip_scene(flipped).layout.boxes, layout.boxes)


def test_boxes_less_than_half_inside_a_crop_are_dropped() -> None:
    boxes = [[0, 0, 40, 40], [50, 50, 20, 20], [10, 10, 20, 20]]
    annotations = []
    for i, box in enumerate(boxes):
        annotations.append({"bbox": box, "category": "dog", "phrase": f"dog {i}"})
    record = {"width": 100, "height": 100, "prompt": "3 dog, sand", "annotations": annotations}
    scene = crop_scene(parse_scene(json.dumps(record).encode()), 10, 10, 50, 50)
    assert scene.phrases == ("dog 0", "dog 2")  # a quarter of the second is inside
    np.testing.assert_array_equal(scene.layout.boxes, [[0, 0, 30, 30], [0, 0, 20, 20]])
    assert scene.background == "sand"
