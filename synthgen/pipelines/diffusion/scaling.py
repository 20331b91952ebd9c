"""The scale at which images are generated: on a larger canvas, then shrunk to the requested size.

A checkpoint generates objects of some sizes well. Where the boxes of a job are smaller, the canvas
and the boxes are enlarged together, the image is generated at that size, and the result is shrunk
(Lanczos). Labels keep the requested size.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage

from synthgen.geometry import box_sides
from synthgen.layouts.base import InfeasibleLayoutError, SamplerSpec
from synthgen.randomness import Stream, seed_sequence
from synthgen.scenes.scene import Scene

LARGEST_SCALE = 8.0
LARGEST_CANVAS = 4096  # px; `native` allows at most this many squared pixels on a canvas
SCALE_STEP = 0.25  # `native` is a multiple of it
SAMPLED_LAYOUTS = 8  # number of layouts from which the box sizes of a job are estimated
SUPPORT = 3  # px of the shrunk image over which Lanczos mixes


def measure_boxes(sampler: SamplerSpec) -> NDArray[np.float64]:
    """Measure the longer sides (N,) in px of the boxes of a few layouts of a job.

    The same layouts are sampled every time. An infeasible layout is skipped, because other checks
    report it.
    """
    boxes: list[NDArray[Any]] = [np.zeros((0, 4))]
    for k in range(SAMPLED_LAYOUTS):
        rng = np.random.default_rng(seed_sequence(0, k, Stream.LAYOUT))
        with suppress(InfeasibleLayoutError):
            boxes.append(sampler.sample(rng, k).boxes)
    sides: NDArray[np.float64] = box_sides(np.concatenate(boxes)).max(1, initial=0.0)
    return sides


def choose_scale(sides: NDArray[np.float64], canvas: tuple[int, int], least: float) -> float:
    """Choose the least scale at which three of four boxes are as large as a checkpoint needs.

    Args:
        sides: (N,) longer sides of boxes, in px.
        canvas: width and height in px.
        least: longer side in px from which on the checkpoint generates an object well.

    Returns:
        A multiple of SCALE_STEP from 1 to LARGEST_SCALE, at which the canvas has at most
        LARGEST_CANVAS x LARGEST_CANVAS pixels (or 1, if the canvas itself has more).
    """
    if not len(sides):
        return 1.0
    wanted = least / float(np.quantile(sides, 0.25))
    room = LARGEST_CANVAS / (canvas[0] * canvas[1]) ** 0.5
    most = min(LARGEST_SCALE, max(1.0, np.floor(room / SCALE_STEP) * SCALE_STEP))
    return float(np.clip(np.ceil(wanted / SCALE_STEP) * SCALE_STEP, 1.0, most))


def enlarge_canvas(canvas: tuple[int, int], scale: float, multiple: int) -> tuple[int, int]:
    """Return the canvas (width, height) in px on which an image is generated.

    Args:
        canvas: the requested width and height in px. At scale 1 it is returned unchanged.
        multiple: px; both sides are rounded up to a multiple of it.
    """
    if scale == 1:
        return canvas
    width, height = canvas
    return _enlarge_side(width, scale, multiple), _enlarge_side(height, scale, multiple)


def _enlarge_side(side: int, scale: float, multiple: int) -> int:
    return int(np.ceil(round(side * scale, 6) / multiple)) * multiple


def enlarge_scene(scene: Scene, canvas: tuple[int, int]) -> Scene:
    """Return the scene with its boxes and masks scaled to another canvas (width, height) in px."""
    layout = scene.layout
    if (layout.width, layout.height) == canvas:
        return scene
    ratio = np.array([canvas[0] / layout.width, canvas[1] / layout.height] * 2)
    boxes = np.minimum(layout.boxes * ratio, np.array(canvas * 2)).astype(np.float32)
    masks = layout.masks
    if masks is not None:
        masks = tuple(_resize_mask(mask, canvas) for mask in masks)
    larger = replace(layout, width=canvas[0], height=canvas[1], boxes=boxes, masks=masks)
    return replace(scene, layout=larger)


def _resize_mask(mask: dict[str, Any], canvas: tuple[int, int]) -> dict[str, Any]:
    """Resize a run-length encoding to a canvas (width, height)."""
    pixels = Image.fromarray(coco_mask.decode(mask)).resize(canvas, Image.Resampling.NEAREST)
    encoded: dict[str, Any] = coco_mask.encode(np.asfortranarray(np.asarray(pixels)))
    return encoded


def resize_images(
    images: Sequence[NDArray[np.uint8]], size: tuple[int, int]
) -> list[NDArray[np.uint8]]:
    """Resize images (H, W, 3) to a width and height (Lanczos); those of that size do not change."""
    return [_resize_image(image, size) for image in images]


def _resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if (image.shape[1], image.shape[0]) == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def shrink_changes(
    original: NDArray[np.uint8], before: NDArray[np.uint8], after: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return an image with the changes made to its enlarged copy; all other pixels stay the same.

    Args:
        original: (h, w, 3), the image.
        before: (H, W, 3), the enlarged image.
        after: (H, W, 3), the enlarged image, of which a part was generated again.
    """
    if before.shape == original.shape:
        return after
    height, width = original.shape[:2]
    changed = Image.fromarray((before != after).any(2)).convert("L")
    mask = np.asarray(changed.resize((width, height), Image.Resampling.BOX)) > 0
    mask = ndimage.binary_dilation(mask, iterations=SUPPORT)
    shrunk = _resize_image(after, (width, height))
    mixed: NDArray[np.uint8] = np.where(mask[..., None], shrunk, original)
    return mixed
