"""Masks of boxes: conversion of polygons and run-length encodings to those that a dataset has."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from synthgen.formats.entries import Entry, Problem, is_number, parse_whole_number

MOST_PIXELS = 2 * 89_478_485  # pillow assumes that a larger image is a decompression bomb
MOST_PX = 1e5  # px, the largest coordinate of a polygon: others exhaust the rasteriser's memory


def add_masks(entry: Entry, segmentations: Sequence[Any]) -> Entry:
    """Return the entry with a mask for each box whose segmentation is not empty.

    A mask that cannot be converted is dropped and reported in `lost_masks`; its box is kept.

    Args:
        segmentations: polygons (flat lists of x, y in px) or a run-length encoding for each box.
    """
    more: list[dict[str, Any]] = []
    lost_masks: list[Problem] = []
    for place, segmentation in zip(entry.places, segmentations, strict=True):
        mask: dict[str, Any] = {}
        try:
            if segmentation:
                mask["segmentation"] = encode_mask(segmentation, entry.width, entry.height)
        except ValueError as error:
            lost_masks.append(Problem(place, str(error)))
        more.append(mask)
    return replace(entry, more=tuple(more), lost_masks=tuple(lost_masks))


def encode_mask(segmentation: Any, width: int, height: int) -> dict[str, Any]:
    """Return COCO's compressed run-length encoding of a mask.

    Args:
        segmentation: polygons (flat lists of x, y in px) or a run-length encoding.

    Raises:
        ValueError: the segmentation is neither, is empty, or has another size.
    """
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        if not segmentation or not all(_is_polygon(points) for points in segmentation):
            raise ValueError("segmentation: a polygon is a flat list of three or more points x, y")
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    else:
        encoded = _check_encoding(segmentation, width, height)
    counts = encoded["counts"]
    if not coco_mask.area({"size": [height, width], "counts": counts}):
        raise ValueError("segmentation: holds no pixel")
    return {"size": [height, width], "counts": counts.decode("ascii")}


def _is_polygon(points: Any) -> bool:
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        return False
    if not all(is_number(value) for value in points):
        return False
    return bool((np.abs(np.array(points, float)) < MOST_PX).all())


def _check_encoding(segmentation: Any, width: int, height: int) -> dict[str, Any]:
    """Return a run-length encoding with compressed counts (bytes).

    Raises:
        ValueError: it is not a run-length encoding of this size.
    """
    from pycocotools import mask as coco_mask

    if width * height > MOST_PIXELS:
        raise ValueError(f"segmentation: an image of {width} x {height} px is too large for a mask")
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        raise ValueError(
            f"segmentation: neither polygons nor a run-length encoding of size [{height}, {width}]"
        )
    counts: Any = segmentation.get("counts")
    try:
        if isinstance(counts, bytes):
            counts = counts.decode("ascii")
        runs = _list_runs(counts)
        if sum(runs) != width * height:
            raise ValueError("counts do not add up")
    except ValueError as error:
        raise ValueError(f"segmentation: not a run-length encoding: {error}") from None
    if not isinstance(counts, list):
        return {"counts": counts.encode("ascii")}
    encoded: dict[str, Any] = coco_mask.frPyObjects(
        {"size": [height, width], "counts": runs}, height, width
    )
    return encoded


def _list_runs(counts: Any) -> list[int]:
    """Return the lengths of the runs of plain or compressed counts.

    Raises:
        ValueError: a count is negative or not a whole number.
    """
    values = counts if isinstance(counts, list) else _decompress_counts(counts)
    runs: list[int] = []
    for value in values:
        run = parse_whole_number(value)
        if run is None or run < 0:
            raise ValueError("counts do not add up")
        runs.append(run)
    return runs


def _decompress_counts(counts: Any) -> list[int]:
    """Return the runs of COCO's compressed counts (cocoapi's maskApi.c, rleFrString).

    pycocotools does not check that they add up.

    Raises:
        ValueError: the value is not such a text.
    """
    if not isinstance(counts, str):
        raise ValueError(f"{counts!r} are no counts")
    runs: list[int] = []
    run = 0
    shift = 0
    for letter in counts:
        part = ord(letter) - 48
        if not 0 <= part < 64 or shift > 30:
            raise ValueError("counts hold a letter that is not allowed")
        run |= (part & 31) << shift
        shift += 5
        if part & 32:
            continue
        if part & 16:
            run -= 1 << shift
        runs.append(run + runs[-2] if len(runs) > 2 else run)
        run = 0
        shift = 0
    if shift:
        raise ValueError("counts end in the middle of a number")
    return runs
