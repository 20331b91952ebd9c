"""Layouts that exist already: read from COCO files, JSON lines, tables, and datasets of ours."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthgen.layouts import Boxes, Layout
from synthgen.shards.categories import COCO_IDS

TABLES = (".parquet",)
LINES = (".jsonl", ".ndjson")
DOCUMENT_FORM = re.compile(r"label_(\d+)_bbox_" + "_".join([r"(-?\d+(?:\.\d+)?)"] * 4))  # x, y, width, height in px


@dataclass(frozen=True)
class Entry:
    """One annotated picture: boxes (N, 4) float64, xyxy in px; masks, phrases, depth and caption where the file has them."""

    place: str
    width: int
    height: int
    boxes: NDArray[np.float64]
    names: tuple[str, ...]
    phrases: tuple[str, ...] | None = None
    masks: tuple[dict[str, Any], ...] | None = None
    depth: tuple[float, ...] | None = None
    caption: str | None = None


def read_entries(source: str) -> tuple[Entry, ...]:
    """All annotated pictures of a file or dataset, read once.

    Args:
        source: COCO's instances.json; JSON lines or a Parquet table, a picture a row; or the output of `synthgen run`.

    Raises:
        ValueError: it cannot be read; the message names file, line, and what would be right.
    """
    return _read(located(source), changed_at(source))


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
    if path.suffix in LINES:
        entries = tuple(_line_entries(path))
    elif path.suffix in TABLES:
        entries = tuple(_table_entries(path))
    else:
        entries = tuple(_coco_entries(path))
    if not any(len(e.names) for e in entries):
        raise ValueError(f"{path}: holds no boxes")
    return entries


def _coco_entries(path: Path) -> Iterator[Entry]:
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}:{getattr(error, 'lineno', 1)}: not JSON: {error}") from None
    if not isinstance(data, dict) or not {"images", "annotations", "categories"} <= set(data):
        raise ValueError(f"{path}: not a COCO file: it needs images, annotations and categories")
    names = {c["id"]: c["name"] for c in data["categories"]}
    of_image: dict[int, list[Any]] = {image["id"]: [] for image in data["images"]}
    for k, annotation in enumerate(data["annotations"]):
        place = f"{path}: annotations[{k}]"
        if annotation.get("category_id") not in names:
            raise ValueError(f"{place}: category_id {annotation.get('category_id')!r} is not among the categories")
        if annotation.get("image_id") not in of_image:
            raise ValueError(f"{place}: image_id {annotation.get('image_id')!r} is not among the images")
        if not annotation.get("iscrowd"):
            box = xyxy(annotation.get("bbox"), place)
            of_image[annotation["image_id"]].append((box, names[annotation["category_id"]]))
    for image in data["images"]:
        found = of_image[image["id"]]
        boxes = np.array([b for b, _ in found], np.float64).reshape(-1, 4)
        size, words = (image["width"], image["height"]), image.get("caption")
        yield Entry(f"{path}: image {image['id']}", *size, boxes, tuple(n for _, n in found), caption=words)


def _line_entries(path: Path) -> Iterator[Entry]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not JSON: {error}") from None
            yield _entry(record, f"{path}:{number}", path.parent)


def _table_entries(path: Path) -> Iterator[Entry]:
    import pyarrow.parquet as pq

    for number, record in enumerate(pq.read_table(path).to_pylist(), 1):
        yield _entry({k: v for k, v in record.items() if v is not None}, f"{path}: row {number}", path.parent)


def _entry(record: Any, place: str, folder: Path) -> Entry:
    """One row: boxes (xyxy), or bbox (xywh), or masks (run-length encodings), or the `label_4_bbox_x_y_w_h` strings."""
    if not isinstance(record, dict):
        raise ValueError(f"{place}: {str(record)[:40]!r} is not a mapping")
    if "custom_annotation" in record:
        boxes, names = _document_boxes(record["custom_annotation"], place)
    else:
        boxes, names = _plain_boxes(record, place)
    width, height = _picture_size(record, place, folder)
    lists = {key: tuple(record[key]) for key in ("phrases", "masks", "depth") if record.get(key)}
    for key, values in lists.items():
        if len(values) != len(names):
            raise ValueError(f"{place}: {key}: {len(values)} given for {len(names)} boxes")
    return Entry(place, width, height, boxes, names, **lists, caption=record.get("caption"))


def _plain_boxes(record: dict[str, Any], place: str) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    names = record.get("categories", record.get("category"))
    if names is None:
        raise ValueError(f"{place}: categories: missing; a name for each box")
    if "boxes" in record:
        rows = [_corners(b, f"{place}: boxes[{i}]") for i, b in enumerate(record["boxes"])]
    elif "bbox" in record:
        rows = [xyxy(b, f"{place}: bbox[{i}]") for i, b in enumerate(record["bbox"])]
    elif "masks" in record:
        from pycocotools import mask as coco_mask

        rows = [xyxy(coco_mask.toBbox(m).tolist(), f"{place}: masks[{i}]") for i, m in enumerate(record["masks"])]
    else:
        raise ValueError(f"{place}: give boxes (x0, y0, x1, y1), bbox (x, y, width, height) or masks")
    if len(names) != len(rows):
        raise ValueError(f"{place}: categories: {len(names)} names for {len(rows)} boxes")
    return np.array(rows, np.float64).reshape(-1, 4), tuple(map(str, names))


def _document_boxes(strings: Any, place: str) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Boxes and names of `label_4_bbox_359.17_146.17_112.45_213.57`: COCO's category id, then x, y, width, height."""
    by_id = {i: name for name, i in COCO_IDS.items()}
    boxes, names = [], []
    for i, text in enumerate(strings):
        found = DOCUMENT_FORM.fullmatch(str(text))
        if not found or int(found[1]) not in by_id:
            raise ValueError(f"{place}: custom_annotation[{i}]: {text!r} is not label_ID_bbox_X_Y_W_H with an id of COCO's")
        boxes.append(xyxy([float(v) for v in found.groups()[1:]], f"{place}: custom_annotation[{i}]"))
        names.append(by_id[int(found[1])])
    return np.array(boxes, np.float64).reshape(-1, 4), tuple(names)


def _picture_size(record: dict[str, Any], place: str, folder: Path) -> tuple[int, int]:
    if "width" in record and "height" in record:
        return int(record["width"]), int(record["height"])
    picture = folder / str(record.get("file_name", ""))
    if not picture.is_file():
        raise ValueError(f"{place}: give width and height, or a file_name beside the file")
    from PIL import Image

    with Image.open(picture) as image:
        return image.size


def xyxy(bbox: Any, place: str) -> list[float]:
    """x0, y0, x1, y1 of x, y, width, height."""
    if not (isinstance(bbox, list | tuple) and len(bbox) == 4 and all(isinstance(v, int | float) for v in bbox)):
        raise ValueError(f"{place}: {bbox!r} is not x, y, width, height")
    if bbox[2] <= 0 or bbox[3] <= 0:
        raise ValueError(f"{place}: {list(bbox)}: width and height must be greater than 0")
    return [bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]]


def _corners(box: Any, place: str) -> list[float]:
    if not (isinstance(box, list | tuple) and len(box) == 4 and all(isinstance(v, int | float) for v in box)):
        raise ValueError(f"{place}: {box!r} is not x0, y0, x1, y1")
    if box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError(f"{place}: {list(box)}: x1 must be greater than x0, and y1 than y0")
    return list(box)


def on_canvas(entry: Entry, canvas: tuple[int, int]) -> Layout:
    """The entry as a layout on another canvas, stretched to it; boxes are clipped, those of less than a pixel go."""
    scale = np.array(canvas) / (entry.width, entry.height)
    boxes: Boxes = np.clip(entry.boxes * np.tile(scale, 2), 0, np.tile(canvas, 2)).astype(np.float32)
    keep = np.nonzero(((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1))[0].tolist() if len(boxes) else []
    depth = None if entry.depth is None else np.array(entry.depth, np.float32)
    masks = None if entry.masks is None else tuple(_resized(m, canvas) for m in entry.masks)
    layout = Layout(*canvas, boxes, entry.names, entry.phrases, masks=masks, depth=depth, caption=entry.caption)
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
