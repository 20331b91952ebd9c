"""Boxes: their formats, conversions between formats, and comparisons of boxes (numpy only).

Boxes are arrays (N, 4), in px unless a function says otherwise. x grows to the right, y downwards,
and an edge lies between two pixels: a box from x0 = 0 to x1 = 1 covers the first column. Functions
whose shapes are written (..., 4) also take a single box.

- xyxy: the left, upper, right and lower edge. Layouts use it.
- xywh: the left and upper edge, width and height. COCO uses it.
- cxcywh: centre, width and height. YOLO uses it, relative to the width and height of the image.
- VOC's corners: the first and the last pixel as whole numbers, counted from 1.

Results have the dtype of the boxes unless a function says otherwise.
"""

from math import ceil
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

AnyFloat = TypeVar("AnyFloat", bound=np.floating[Any])
Box = tuple[float, float, float, float]
"""One box as Python's numbers; the format is documented where the type is used."""

MAX_COORDINATE = 1e6
"""The largest magnitude in px that a coordinate may have."""


def box_sides(boxes: NDArray[AnyFloat]) -> NDArray[AnyFloat]:
    """Return width and height (..., 2) of boxes (..., 4) xyxy."""
    result: NDArray[AnyFloat] = boxes[..., 2:] - boxes[..., :2]
    return result


def box_areas(boxes: NDArray[AnyFloat]) -> NDArray[AnyFloat]:
    """Return the area (...) in px² of boxes (..., 4) xyxy."""
    result: NDArray[AnyFloat] = box_sides(boxes).prod(-1)
    return result


def box_centres(boxes: NDArray[AnyFloat]) -> NDArray[AnyFloat]:
    """Return the centre x, y (..., 2) of boxes (..., 4) xyxy."""
    result: Any = (boxes[..., :2] + boxes[..., 2:]) / 2
    return result


def xyxy_to_xywh(boxes: NDArray[AnyFloat]) -> NDArray[AnyFloat]:
    """Return boxes (..., 4) xyxy as xywh."""
    return np.concatenate([boxes[..., :2], box_sides(boxes)], -1)


def xywh_to_xyxy(boxes: NDArray[AnyFloat]) -> NDArray[AnyFloat]:
    """Return boxes (..., 4) xywh as xyxy."""
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)


def xywh_to_yolo(boxes: NDArray[AnyFloat], width: int, height: int) -> NDArray[AnyFloat]:
    """Return boxes (..., 4) xywh as cxcywh relative to an image of width x height px."""
    low = boxes[..., :2]
    size = boxes[..., 2:]
    shares: NDArray[AnyFloat] = np.concatenate([low + size / 2, size], -1)
    return shares / _corner(boxes, width, height)


def yolo_to_xywh(boxes: NDArray[AnyFloat], width: int, height: int) -> NDArray[AnyFloat]:
    """Return boxes (..., 4) cxcywh, relative to an image of width x height px, as xywh."""
    centre = boxes[..., :2]
    size = boxes[..., 2:]
    shares: NDArray[AnyFloat] = np.concatenate([centre - size / 2, size], -1)
    return shares * _corner(boxes, width, height)


def xywh_to_voc(box: Box) -> tuple[int, int, int, int]:
    """Return VOC's xmin, ymin, xmax, ymax of a box xywh.

    They name the pixels whose centres the box covers, counted from 1 with both ends included, as
    in the development kit of VOC2012 ("Annotations"): xmin = round(x0) + 1, xmax = round(x1). A
    side moves by at most half a pixel. The result has at least one pixel, and no pixel that the
    box does not touch.
    """
    x, y, width, height = box
    xmin = min(round(x) + 1, ceil(x + width))
    ymin = min(round(y) + 1, ceil(y + height))
    return xmin, ymin, max(xmin, round(x + width)), max(ymin, round(y + height))


def voc_to_xyxy(xmin: float, ymin: float, xmax: float, ymax: float) -> Box:
    """Return VOC's corners as a box xyxy."""
    return xmin - 1, ymin - 1, xmax, ymax


def clip_boxes(boxes: NDArray[AnyFloat], width: float, height: float) -> NDArray[np.float64]:
    """Return boxes (..., 4) xyxy clipped to an image of width x height px, as float64.

    A box that lies wholly outside becomes a box without area at the edge. NaN stays NaN.
    """
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float64))


def box_intersections(boxes: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Return the area (N, M) in px² that boxes (N, 4) and others (M, 4) xyxy have in common.

    The result has numpy's common dtype of both.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (high - low).clip(0).prod(2)


def box_iou(boxes: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    """Return the intersection over union (N, M) of boxes (N, 4) and others (M, 4) xyxy.

    It lies in [0, 1], and is 0 where both boxes have no area. It is computed in float64 for
    boxes of any dtype.
    """
    a = np.asarray(boxes, np.float64)
    b = np.asarray(others, np.float64)
    common = box_intersections(a, b)
    union = np.add.outer(box_areas(a), box_areas(b)) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def shares_inside(boxes: NDArray[Any], windows: ArrayLike) -> NDArray[Any]:
    """Return the share (N, M) of the area of each box (N, 4) xyxy inside each window (M, 4) xyxy.

    Shares lie in [0, 1] and have numpy's common dtype of both. Boxes and windows are in the same
    unit, and every box must have an area.
    """
    return box_intersections(boxes, np.asarray(windows)) / box_areas(boxes)[:, None]


def non_maximum_suppression(boxes: NDArray[Any], threshold: float = 0.5) -> list[int]:
    """Return the boxes that remain after each one suppressed the worse boxes that overlap it.

    Args:
        boxes: (N, 4) xyxy, the best box first.
        threshold: the IoU above which two boxes overlap.

    Returns:
        The indices of the remaining boxes, ascending.
    """
    overlap = box_iou(boxes, boxes) > threshold
    suppressed = np.zeros(len(boxes), bool)
    remaining = []
    for i in range(len(boxes)):
        if not suppressed[i]:
            remaining.append(i)
            suppressed |= overlap[i]
    return remaining


def _corner(boxes: NDArray[AnyFloat], width: int, height: int) -> NDArray[AnyFloat]:
    """Return the lower right corner of an image, twice, as boxes (4,) of the same dtype."""
    return np.array([width, height, width, height], boxes.dtype)
