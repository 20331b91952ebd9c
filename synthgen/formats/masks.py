"""Masks of boxes: polygons and run-length encodings of other programs as those that a dataset holds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from synthgen.formats.entries import Entry, Problem, is_number, whole_number

MOST_PIXELS = 2 * 89_478_485  # of a picture: what pillow takes for a decompression bomb


def with_masks(entry: Entry, segmentations: Sequence[Any]) -> Entry:
    """The entry with a mask for each box whose segmentation is not empty: polygons (flat lists of x, y in px) or an encoding.

    A mask that cannot be made is left out and told; its box is kept.
    """
    more: list[dict[str, Any]] = []
    lost: list[Problem] = []
    for place, shapes in zip(entry.places, segmentations, strict=True):
        mask: dict[str, Any] = {}
        try:
            if shapes:
                mask["segmentation"] = run_length(shapes, entry.width, entry.height)
        except ValueError as error:
            lost.append(Problem(place, str(error)))
        more.append(mask)
    return replace(entry, more=tuple(more), lost_masks=tuple(lost))


def run_length(segmentation: Any, width: int, height: int) -> dict[str, Any]:
    """COCO's compressed run-length encoding of polygons (flat lists of x, y in px) or of a run-length encoding.

    Raises:
        ValueError: it is neither, or of another size.
    """
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        if not segmentation or not all(_is_polygon(p) for p in segmentation):
            raise ValueError("segmentation: a polygon is a flat list of three or more points x, y")
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    else:
        encoded = _checked_encoding(segmentation, width, height)
    if not coco_mask.area({"size": [height, width], "counts": encoded["counts"]}):
        raise ValueError("segmentation: holds no pixel")
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def _is_polygon(points: Any) -> bool:
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        return False
    # coordinates of the wildest size would make the rasteriser run out of memory
    return all(is_number(v) for v in points) and bool((np.abs(np.array(points, float)) < 1e5).all())


def _checked_encoding(segmentation: Any, width: int, height: int) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    if width * height > MOST_PIXELS:
        raise ValueError(
            f"segmentation: a picture of {width} x {height} px is too large for a mask"
        )
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        raise ValueError(
            f"segmentation: neither polygons nor a run-length encoding of size [{height}, {width}]"
        )
    counts: Any = segmentation.get("counts")
    try:
        counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
        given = (
            list(map(whole_number, counts)) if isinstance(counts, list) else _decompressed(counts)
        )
        runs = [run for run in given if run is not None and run >= 0]
        if len(runs) != len(given) or sum(runs) != width * height:
            raise ValueError("counts do not add up")
    except ValueError as error:
        raise ValueError(f"segmentation: not a run-length encoding: {error}") from None
    if not isinstance(counts, list):
        return {"counts": counts.encode("ascii")}
    encoded: dict[str, Any] = coco_mask.frPyObjects(
        {"size": [height, width], "counts": runs}, height, width
    )
    return encoded


def _decompressed(counts: Any) -> list[int]:
    """The runs of COCO's compressed counts (cocoapi's maskApi.c, rleFrString); pycocotools does not look whether they add up.

    Raises:
        ValueError: they are no such text.
    """
    if not isinstance(counts, str):
        raise ValueError(f"{counts!r} are no counts")
    runs: list[int] = []
    run = shift = 0
    for letter in counts:
        part = ord(letter) - 48
        if not 0 <= part < 64 or shift > 30:
            raise ValueError("counts hold a letter that has no place there")
        run |= (part & 31) << shift
        shift += 5
        if part & 32:
            continue
        if part & 16:
            run -= 1 << shift
        runs.append(run + runs[-2] if len(runs) > 2 else run)
        run = shift = 0
    if shift:
        raise ValueError("counts end in the middle of one")
    return runs
