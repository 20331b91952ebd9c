"""Existing layouts: those of annotated images and of synthgen datasets."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from synthgen.formats.base import ALL
from synthgen.formats.coco import reader as coco
from synthgen.formats.entries import NO_AREA, Entry, Problem, has_no_area
from synthgen.formats.jsonl import reader as jsonl
from synthgen.formats.source import Source, locate_source
from synthgen.geometry import box_sides, clip_boxes
from synthgen.layouts.base import Boxes, Layout

COCO_FILE = "annotations/instances.json"


def read_entries(source: str) -> tuple[Entry, ...]:
    """Return all annotated images of a file or dataset without their crowds. Results are cached.

    Args:
        source: COCO's instances.json, JSON lines or a Parquet table with one row for each image, or
            the output folder of `synthgen run`.

    Raises:
        ValueError: the source cannot be read; the message names the file and line, and says what
            would be right.
    """
    return _read_file(locate_file(source), read_modification_time(source))


def read_any(source: str) -> tuple[Entry, ...]:
    """Return the entries of all splits of a source in any format that `synthgen import` reads.

    Raises:
        ValueError: the same as in `read_entries`.
    """
    if (Path(source) / COCO_FILE).is_file():
        return read_entries(source)
    form, path = locate_source(Path(source))
    if form in ("coco", "jsonl"):
        return read_entries(str(path))
    return _check_entries(Source(form, path, split=ALL).entries(), path)


def list_labelled_categories(source: str) -> dict[str, bool]:
    """Return the categories of a source, in order of appearance, each mapped to True.

    Raises:
        ValueError: the same as in `read_entries`.
    """
    categories: dict[str, bool] = {}
    for entry in read_entries(source):
        categories.update(dict.fromkeys(entry.names, True))
    return categories


def locate_file(source: str) -> Path:
    """Return the annotation file of a source; for a synthgen dataset this is its COCO file.

    Raises:
        ValueError: there is no such file.
    """
    coco_file = Path(source) / COCO_FILE
    path = coco_file if coco_file.is_file() else Path(source)
    if not path.is_file():
        raise ValueError(f"{source!r} is neither a file nor an output folder of `synthgen run`")
    return path


def read_modification_time(source: str) -> int:
    """Return when the annotation file was last written, in ns, to be used as a key of caches."""
    return locate_file(source).stat().st_mtime_ns


def hash_source(source: str) -> str:
    """Return the SHA-256 of the file that `read_entries` reads, in hexadecimal."""
    return hashlib.sha256(locate_file(source).read_bytes()).hexdigest()


@lru_cache(maxsize=8)
def _read_file(path: Path, modified: int) -> tuple[Entry, ...]:
    """Return the checked entries of a file; `modified` is a key of the cache only."""
    if path.suffix in jsonl.LINES + jsonl.TABLES:
        return _check_entries(jsonl.read(path), path)
    return _check_entries(coco.read(path), path)


def _check_entries(entries: Iterable[Entry | Problem], path: Path) -> tuple[Entry, ...]:
    """Return the entries of a file if all of them are valid.

    Raises:
        ValueError: an entry is invalid, or the entries have no boxes.
    """
    valid = []
    for entry in entries:
        if isinstance(entry, Problem):
            raise ValueError(str(entry))
        for i in np.flatnonzero(has_no_area(entry.boxes)).tolist():
            raise ValueError(str(entry.fault(i, NO_AREA)))
        valid.append(entry)
    if not any(len(entry.names) for entry in valid):
        raise ValueError(f"{path}: contains no boxes; crowds (iscrowd: 1) are left out")
    return tuple(valid)


def fit_to_canvas(entry: Entry, canvas: tuple[int, int]) -> Layout:
    """Return the layout of an entry, stretched to a canvas.

    Boxes are clipped to the canvas. Boxes of less than one pixel in width or height are left out.
    """
    scale = np.array(canvas) / (entry.width, entry.height)
    boxes: Boxes = clip_boxes(entry.boxes * np.tile(scale, 2), *canvas).astype(np.float32)
    large_enough: list[int] = []
    if len(boxes):
        large_enough = np.flatnonzero((box_sides(boxes) >= 1).all(1)).tolist()
    depth = None if entry.depth is None else np.array(entry.depth, np.float32)
    masks = None
    if entry.masks is not None:
        masks = tuple(_resize_mask(mask, canvas) for mask in entry.masks)
    layout = Layout(
        *canvas, boxes, entry.names, entry.phrases, masks=masks, depth=depth, caption=entry.caption
    )
    return layout.select(large_enough)


def _resize_mask(mask: dict[str, Any], canvas: tuple[int, int]) -> dict[str, Any]:
    """Return a run-length encoding, resized to a canvas."""
    if tuple(mask["size"]) == (canvas[1], canvas[0]):
        return mask
    from PIL import Image
    from pycocotools import mask as coco_mask

    image = Image.fromarray(coco_mask.decode(mask)).resize(canvas, Image.Resampling.NEAREST)
    encoded = coco_mask.encode(np.asfortranarray(np.asarray(image)))
    height, width = encoded["size"]
    return {"size": [int(height), int(width)], "counts": encoded["counts"].decode("ascii")}
