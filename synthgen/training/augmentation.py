"""Resize, crop and flip of a scene and its picture together: boxes follow."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthgen.geometry import clip_boxes, shares_inside
from synthgen.layouts.base import HELD, Layout
from synthgen.layouts.coco import mirrored
from synthgen.scenes.scene import Scene

Picture = NDArray[np.uint8]


def fitted(
    scene: Scene, picture: Picture, side: int, resize: bool, flip: float, rng: np.random.Generator
) -> tuple[Scene, Picture]:
    """A scene as it is trained on: a random crop of `side` px at most.

    Args:
        resize: scale it first, so that the shorter side is `side`.
        flip: probability that it is mirrored.
    """
    if resize:
        scene, picture = resized(scene, picture, side)
    y, x = (int(rng.integers(max(0, n - side) + 1)) for n in picture.shape[:2])
    picture = picture[y : y + side, x : x + side]
    scene = crop_scene(scene, x, y, picture.shape[1], picture.shape[0])
    if flip and rng.random() < flip:
        scene, picture = flipped(scene), np.ascontiguousarray(picture[:, ::-1])
    return scene, picture


def resized(scene: Scene, picture: Picture, side: int) -> tuple[Scene, Picture]:
    """The scene with its shorter side at `side` px."""
    rows, columns = picture.shape[:2]
    width, height = (max(side, round(n * side / min(rows, columns))) for n in (columns, rows))
    image = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    scale = np.array([width / columns, height / rows] * 2)
    layout = replace(
        scene.layout,
        width=width,
        height=height,
        boxes=(scene.layout.boxes * scale).astype(np.float32),
    )
    return replace(scene, layout=layout), np.array(image)


def crop_scene(scene: Scene, x: int, y: int, width: int, height: int) -> Scene:
    """The scene seen through the crop at (x, y); boxes are clipped, those less than half inside go."""
    boxes = scene.layout.boxes.astype(np.float64)
    clipped = clip_boxes(boxes - [x, y, x, y], width, height)
    keep = shares_inside(boxes, [(x, y, x + width, y + height)])[:, 0] >= HELD
    layout: Layout = replace(
        scene.layout, width=width, height=height, boxes=clipped.astype(np.float32)
    )
    return replace(scene, layout=layout.select(np.flatnonzero(keep).tolist()))


def flipped(scene: Scene) -> Scene:
    """Left and right exchanged; the words stay."""
    return replace(scene, layout=replace(mirrored(scene.layout), caption=scene.layout.caption))
