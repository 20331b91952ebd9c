"""Layouts that exist already: those of annotated pictures and of datasets of ours."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from synthgen.formats.base import ALL
from synthgen.formats.coco import reader as coco
from synthgen.formats.entries import NO_AREA, Entry, Problem, without_area
from synthgen.formats.jsonl import reader as jsonl
from synthgen.formats.source import Source, locate
from synthgen.geometry import box_sides, clip_boxes
from synthgen.layouts.base import Boxes, Layout


def read_entries(source: str) -> tuple[Entry, ...]:
    """All annotated pictures of a file or dataset, read once; crowds are left out.

    Args:
        source: COCO's instances.json; JSON lines or a Parquet table, a picture a row; or the output of `synthgen run`.

    Raises:
        ValueError: it cannot be read; the message names file, line, and what would be right.
    """
    return _read(located(source), changed_at(source))


def read_any(source: str) -> tuple[Entry, ...]:
    """The same of every form that `synthgen import` reads, all its splits.

    Raises:
        ValueError: as `read_entries`.
    """
    if (Path(source) / "annotations/instances.json").is_file():
        return read_entries(source)
    form, path = locate(Path(source))
    return (
        read_entries(str(path))
        if form in ("coco", "jsonl")
        else _checked(Source(form, path, split=ALL).entries(), path)
    )


def located(source: str) -> Path:
    """The file that a source names; of a dataset of ours its COCO file.

    Raises:
        ValueError: it is not there.
    """
    inner = Path(source) / "annotations/instances.json"
    path = inner if inner.is_file() else Path(source)
    if not path.is_file():
        raise ValueError(f"{source!r} is no file, and no output folder of `synthgen run`")
    return path


def changed_at(source: str) -> int:
    """When the file was last written, ns: what was read of it can be kept until then."""
    return located(source).stat().st_mtime_ns


def source_hash(source: str) -> str:
    """sha256 of the file that `read_entries` reads."""
    return hashlib.sha256(located(source).read_bytes()).hexdigest()


@lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> tuple[Entry, ...]:
    return _checked(
        jsonl.read(path) if path.suffix in jsonl.LINES + jsonl.TABLES else coco.read(path), path
    )


def _checked(found: Iterable[Entry | Problem], path: Path) -> tuple[Entry, ...]:
    """The entries, if nothing is wrong with any of them.

    Raises:
        ValueError: something is, or they hold no boxes.
    """
    entries = []
    for entry in found:
        if isinstance(entry, Problem):
            raise ValueError(str(entry))
        for i in np.flatnonzero(without_area(entry.boxes)).tolist():
            raise ValueError(str(entry.fault(i, NO_AREA)))
        entries.append(entry)
    if not any(len(e.names) for e in entries):
        raise ValueError(f"{path}: holds no boxes; crowds (iscrowd: 1) are left out")
    return tuple(entries)


def on_canvas(entry: Entry, canvas: tuple[int, int]) -> Layout:
    """The entry as a layout on another canvas, stretched to it; boxes are clipped, those of less than a pixel go."""
    scale = np.array(canvas) / (entry.width, entry.height)
    boxes: Boxes = clip_boxes(entry.boxes * np.tile(scale, 2), *canvas).astype(np.float32)
    keep = np.nonzero((box_sides(boxes) >= 1).all(1))[0].tolist() if len(boxes) else []
    depth = None if entry.depth is None else np.array(entry.depth, np.float32)
    masks = None if entry.masks is None else tuple(_resized(m, canvas) for m in entry.masks)
    layout = Layout(
        *canvas, boxes, entry.names, entry.phrases, masks=masks, depth=depth, caption=entry.caption
    )
    return layout.select(keep)


def _resized(mask: dict[str, Any], canvas: tuple[int, int]) -> dict[str, Any]:
    """A run-length encoding at the canvas' size."""
    if tuple(mask["size"]) == (canvas[1], canvas[0]):
        return mask
    from PIL import Image
    from pycocotools import mask as coco_mask

    image = Image.fromarray(coco_mask.decode(mask)).resize(canvas, Image.Resampling.NEAREST)
    encoded = coco_mask.encode(np.asfortranarray(np.asarray(image)))
    return {"size": [int(v) for v in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
