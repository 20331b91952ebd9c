"""Resizing, cropping and flipping of a scene together with its image: the boxes follow."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthgen.geometry import clip_boxes, shares_inside
from synthgen.layouts.base import MIN_SHARE_INSIDE, Layout
from synthgen.layouts.coco import mirror_layout
from synthgen.scenes.scene import Scene

ImageArray = NDArray[np.uint8]
"""An image (H, W, 3) in RGB."""


def augment(
    scene: Scene, image: ImageArray, side: int, resize: bool, flip: float, rng: np.random.Generator
) -> tuple[Scene, ImageArray]:
    """Return a random crop of a scene and its image, at most `side` px high and wide.

    Args:
        resize: whether to resize the image first, so that its shorter side is `side` px.
        flip: the probability that the crop is mirrored.
    """
    if resize:
        scene, image = resize_scene(scene, image, side)
    height, width = image.shape[:2]
    y = int(rng.integers(max(0, height - side) + 1))
    x = int(rng.integers(max(0, width - side) + 1))
    image = image[y : y + side, x : x + side]
    scene = crop_scene(scene, x, y, image.shape[1], image.shape[0])
    if flip and rng.random() < flip:
        scene = flip_scene(scene)
        image = np.ascontiguousarray(image[:, ::-1])
    return scene, image


def resize_scene(scene: Scene, image: ImageArray, side: int) -> tuple[Scene, ImageArray]:
    """Return a scene and its image with the shorter side at `side` px."""
    rows, columns = image.shape[:2]
    shorter = min(rows, columns)
    width = max(side, round(columns * side / shorter))
    height = max(side, round(rows * side / shorter))
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    scale = np.array([width / columns, height / rows] * 2)
    boxes = (scene.layout.boxes * scale).astype(np.float32)
    layout = replace(scene.layout, width=width, height=height, boxes=boxes)
    return replace(scene, layout=layout), np.array(resized)


def crop_scene(scene: Scene, x: int, y: int, width: int, height: int) -> Scene:
    """Return the scene in a crop of width x height px whose corner is (x, y).

    Boxes are clipped to the crop; boxes with less than half of their area in it are dropped.
    """
    boxes = scene.layout.boxes.astype(np.float64)
    clipped = clip_boxes(boxes - [x, y, x, y], width, height).astype(np.float32)
    keep = shares_inside(boxes, [(x, y, x + width, y + height)])[:, 0] >= MIN_SHARE_INSIDE
    layout: Layout = replace(scene.layout, width=width, height=height, boxes=clipped)
    return replace(scene, layout=layout.select(np.flatnonzero(keep).tolist()))


def flip_scene(scene: Scene) -> Scene:
    """Return a scene with left and right exchanged; its prompts stay the same."""
    layout = replace(mirror_layout(scene.layout), caption=scene.layout.caption)
    return replace(scene, layout=layout)
