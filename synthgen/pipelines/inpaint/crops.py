"""Crops around boxes, enlarged so that an object has a size that the checkpoint knows.

Objects whose areas overlap are generated one after the other, the farther one first, because the
later one has to see the earlier one. All others are generated together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthgen.geometry import box_centres, box_intersections, box_sides, clip_boxes
from synthgen.layouts.base import Layout

Boxes = NDArray[np.float64]
LEAST_SCALE = 2 / 3  # a crop that would be shrunk more than this keeps its size
MOST_SCALE = 1.5  # above it, an enlarged background is too blurred for a checkpoint


@dataclass(frozen=True)
class Crop:
    """A box and its surroundings, and how far they are enlarged.

    Attributes:
        number: index of the box in its layout.
        box: (4,) float64, xyxy in px of the canvas.
        area: (4,) float64, xyxy in px of the canvas: where the object is generated.
        window: x0, y0, x1, y1 in px of the canvas.
        size: width, height of the enlarged crop in px.
        view: x0, y0, x1, y1 in px of the canvas, what the crop shows around the object. It is the
            window, or more of the canvas where the enlarged window would be too blurred.
    """

    number: int
    box: Boxes
    area: Boxes
    window: tuple[int, int, int, int]
    size: tuple[int, int]
    view: tuple[int, int, int, int]

    @property
    def shows_window(self) -> bool:
        """Whether the crop shows its window, and with it all objects that were pasted there."""
        return self.view == self.window

    @property
    def scale(self) -> Boxes:
        """Px of the enlarged crop per px of the canvas, along x and y."""
        x0, y0, x1, y1 = self.window
        return np.array([self.size[0] / (x1 - x0), self.size[1] / (y1 - y0)])

    def enlarge(self, box: Boxes) -> Boxes:
        """Return a box (4,) of the canvas in px of the enlarged crop."""
        origin = np.array(self.window[:2] * 2)
        return (box - origin) * np.tile(self.scale, 2)

    def cut(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the enlarged crop (h, w, 3) of a canvas (H, W, 3) (Lanczos)."""
        x0, y0, x1, y1 = self.view
        crop = Image.fromarray(image[y0:y1, x0:x1])
        return np.asarray(crop.resize(self.size, Image.Resampling.LANCZOS))

    def draw_area(self, cell: int) -> NDArray[np.float32]:
        """Return the share (h, w) of each latent cell of `cell` px that the area covers."""
        x0, y0, x1, y1 = self.enlarge(self.area) / cell
        width, height = (side // cell for side in self.size)
        return np.outer(_cover(height, y0, y1), _cover(width, x0, x1)).astype(np.float32)


def _cover(count: int, low: float, high: float) -> NDArray[np.float64]:
    """Return the share of each of `count` unit intervals from 0 on that [low, high] covers."""
    starts = np.arange(count)
    covered: NDArray[np.float64] = np.minimum(starts + 1, high) - np.maximum(starts, low)
    return covered.clip(0, 1)


def place_crops(layout: Layout, share: float, outset: float, side: int, unit: int) -> list[Crop]:
    """Return the crop of each box of a layout, inside the canvas.

    Args:
        share: share of the crop's side that the longer side of a box fills.
        outset: how far the area of an object extends beyond its box, as a share of its sides.
        side: side in px to which a crop is enlarged.
        unit: px; the sides of enlarged crops are multiples of it.
    """
    canvas = np.array([layout.width, layout.height])
    boxes = layout.boxes.astype(np.float64)
    centres = box_centres(boxes)
    areas = boxes + np.tile(box_sides(boxes), 2) * outset * np.array([-1, -1, 1, 1])
    areas = clip_boxes(areas, layout.width, layout.height)
    crops = []
    for number, (box, area) in enumerate(zip(boxes, areas, strict=True)):
        wanted = math.ceil(float(box_sides(box[None]).max()) / share)
        scale = side / wanted
        if scale < LEAST_SCALE:
            scale = 1.0
        sides = np.minimum(wanted, canvas)
        window = place_window(centres[number], sides, canvas)
        units = np.maximum(np.round(sides * scale / unit).astype(int), 1)
        width, height = (int(value) for value in units * unit)
        view = window
        if scale > MOST_SCALE:
            view = place_window(centres[number], np.minimum((width, height), canvas), canvas)
        crops.append(Crop(number, box, area, window, (width, height), view))
    return crops


def place_window(
    centre: Boxes, sides: NDArray[np.int_], canvas: NDArray[np.int_]
) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 of a window inside the canvas, around a centre if there is room.

    Args:
        centre: (2,) in px.
        sides: (2,) width, height of the window in px, at most those of the canvas.
        canvas: (2,) width, height in px.
    """
    low = np.clip(np.round(centre - sides / 2).astype(int), 0, canvas - sides)
    x0, y0, x1, y1 = (int(value) for value in (*low, *(low + sides)))
    return x0, y0, x1, y1


def order_far_to_near(layout: Layout) -> list[int]:
    """Return the indices of the boxes, the farthest first; without depths, the highest first."""
    distances = -layout.boxes[:, 3] if layout.depth is None else layout.depth
    order: list[int] = np.argsort(-distances, kind="stable").tolist()
    return order


def assign_rounds(crops: Sequence[Crop], order: Sequence[int]) -> list[int]:
    """Return the round in which each object is generated, from 0.

    Objects of one round have areas that do not overlap. Of two objects whose boxes overlap, the
    farther one has the earlier round.

    Args:
        order: indices of the crops, the farthest first.
    """
    areas = np.array([crop.area for crop in crops]).reshape(-1, 4)
    boxes = np.array([crop.box for crop in crops]).reshape(-1, 4)
    areas_overlap = box_intersections(areas, areas) > 0
    boxes_overlap = box_intersections(boxes, boxes) > 0
    rounds = np.full(len(crops), -1)  # -1: not assigned yet
    for index in order:
        taken = set(rounds[areas_overlap[index]].tolist())
        number = int(rounds[boxes_overlap[index]].max(initial=-1)) + 1
        while number in taken:
            number += 1
        rounds[index] = number
    assigned: list[int] = rounds.tolist()
    return assigned
