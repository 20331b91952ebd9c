"""Rows of JSON lines or of a Parquet table, a picture a row."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthgen.records import (
    BadEntryError,
    Entry,
    Problem,
    UnreadableSourceError,
    as_boxes,
    below,
    converted,
    corners,
    positive,
    read_lines,
    text,
    xyxy,
)
from synthgen.records.coco import run_length
from synthgen.records.pictures import upright_size
from synthgen.shards.categories import COCO_IDS

TABLES = (".parquet",)
LINES = (".jsonl", ".ndjson")
DOCUMENT_FORM = re.compile(r"label_(\d+)_bbox_" + "_".join([r"(-?\d+(?:\.\d+)?)"] * 4))  # x, y, width, height in px
A_BOX_EACH: dict[str, tuple[type, ...]] = {"phrases": (str,), "masks": (dict,), "depth": (int, float)}
LOADED_IMAGE = "image"  # what `datasets` calls the column `file_name` of a folder of images, once it is loaded


@dataclass(frozen=True)
class Columns:
    """What the columns of a row are called."""

    caption: str = "caption"
    image: str = "file_name"
    annotation: str = "custom_annotation"


def read(
    path: Path,
    images: Path | None = None,
    columns: Columns | None = None,
    ids: Mapping[str, int] | None = None,
    whole: bool = False,
) -> Iterator[Entry | Problem]:
    """The annotated pictures of a file, one a row.

    Args:
        images: the folder that file names start from; null: that of the file.
        columns: where a row has what.
        ids: category ids that annotation strings may have beside COCO's, by name.
        whole: keep what is known of each box beside its place: masks, held against the size of the picture.
    """
    rows = _table(path) if path.suffix in TABLES else _lines(path)
    names = {i: name for name, i in (ids or {}).items()} | {i: name for name, i in COCO_IDS.items()}
    row = _Row(images or path.parent, columns or Columns(), names, whole)
    for place, record in rows:
        try:
            if isinstance(record, BadEntryError):
                raise record
            yield row.entry(record, place)
        except BadEntryError as error:
            yield from error.problems(place)


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    return ((place, _parsed(line)) for place, line in read_lines(path))


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return BadEntryError(f"not JSON: {error}")


def _table(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa

    from synthgen.parquet import open_input, open_parquet

    try:
        with open_input(path) as source, open_parquet(source) as file:
            rows = (record for batch in file.iter_batches(1024, use_threads=False) for record in batch.to_pylist())
            for number, record in enumerate(rows, 1):
                yield f"{path}: row {number}", {k: v for k, v in record.items() if v is not None}
    except (OSError, pa.ArrowException) as error:
        raise UnreadableSourceError(f"{path}: cannot be read: {error}") from None


@dataclass(frozen=True)
class _Row:
    """How rows are read: boxes (xyxy), or bbox (xywh), or masks (run-length encodings), or `label_4_bbox_x_y_w_h` strings."""

    folder: Path
    columns: Columns
    names: dict[int, str]
    whole: bool

    def entry(self, record: Any, place: str) -> Entry:
        if not isinstance(record, dict):
            raise BadEntryError(f"{str(record)[:40]!r} is not a mapping")
        if self.columns.annotation in record:
            boxes, names = self.document_boxes(record[self.columns.annotation])
        elif self.columns.annotation != Columns.annotation:
            raise BadEntryError(missing(self.columns.annotation, "annotations", record))
        else:
            boxes, names = self.plain_boxes(record)
        picture = self.picture(record)
        width, height = _picture_size(record, picture)
        lists = {key: _a_box_each(record, key, len(names)) for key in A_BOX_EACH if record.get(key)}
        more = None
        if self.whole and "masks" in lists:
            masks = converted(lists["masks"], lambda mask: run_length(mask, width, height), "masks")
            more = tuple({"segmentation": mask} for mask in masks)
        caption = self.caption(record)
        return Entry(place, width, height, as_boxes(boxes), names, **lists, caption=caption, picture=picture, more=more)

    def picture(self, record: dict[str, Any]) -> Path | None:
        key = self.columns.image
        if key == LOADED_IMAGE and key not in record and "file_name" in record:
            key = "file_name"
        if key != Columns.image and key not in record:
            raise BadEntryError(missing(key, "the picture", record))
        return below(self.folder, record[key], key) if key in record else None

    def caption(self, record: dict[str, Any]) -> str | None:
        """The caption; a list of strings is joined. A column that was asked for by another name than ours must be there."""
        key = self.columns.caption
        if key != Columns.caption and key not in record:
            raise BadEntryError(missing(key, "a caption", record))
        value = record.get(key)
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return ", ".join(value)
        return text(value, key)

    def document_boxes(self, strings: Any) -> tuple[list[list[float]], tuple[str, ...]]:
        """Boxes and names of `label_4_bbox_359.17_146.17_112.45_213.57`: category id, then x, y, width, height."""
        key = self.columns.annotation
        if not isinstance(strings, list):
            raise BadEntryError(f"{key}: {strings!r} is not a list of strings")

        def convert(value: Any) -> tuple[list[float], str]:
            found = DOCUMENT_FORM.fullmatch(str(value))
            if not found or int(found[1]) not in self.names:
                raise ValueError(f"{value!r} is not label_ID_bbox_X_Y_W_H with an id of COCO's")
            return xyxy([float(v) for v in found.groups()[1:]]), self.names[int(found[1])]

        pairs = converted(strings, convert, key)
        return [box for box, _ in pairs], tuple(name for _, name in pairs)

    def plain_boxes(self, record: dict[str, Any]) -> tuple[list[list[float]], tuple[str, ...]]:
        names = record.get("categories", record.get("category"))
        if names is None:
            raise BadEntryError(f"categories: missing; a name for each box (or a column {self.columns.annotation})")
        if not isinstance(names, list):
            raise BadEntryError(f"categories: {names!r} is not a list of names")
        if "boxes" in record:
            rows = converted(_list(record, "boxes"), corners, "boxes")
        elif "bbox" in record:
            rows = converted(_list(record, "bbox"), xyxy, "bbox")
        elif "masks" in record:
            rows = converted(_list(record, "masks"), _mask_box, "masks")
        else:
            raise BadEntryError("give boxes (x0, y0, x1, y1), bbox (x, y, width, height) or masks")
        if len(names) != len(rows):
            raise BadEntryError(f"categories: {len(names)} names for {len(rows)} boxes")
        return rows, tuple(map(str, names))


def missing(column: str, what: str, record: dict[str, Any]) -> str:
    """What is said of a column that a row lacks."""
    return f"{column}: no such column for {what}; there are: {', '.join(map(str, record))}"


def _list(record: dict[str, Any], key: str) -> tuple[Any, ...]:
    if not isinstance(record[key], list):
        raise BadEntryError(f"{key}: {record[key]!r} is not a list")
    return tuple(record[key])


def _a_box_each(record: dict[str, Any], key: str, boxes: int) -> tuple[Any, ...]:
    values, kind = _list(record, key), A_BOX_EACH[key]
    if len(values) != boxes:
        raise BadEntryError(f"{key}: {len(values)} given for {boxes} boxes")
    if not all(isinstance(value, kind) for value in values):
        raise BadEntryError(f"{key}: {record[key]!r}: not of the kind that it needs for each box")
    return values


def _mask_box(mask: Any) -> list[float]:
    from pycocotools import mask as coco_mask

    if not isinstance(mask, dict):
        raise ValueError(f"{mask!r} is not a run-length encoding")
    try:
        return xyxy(coco_mask.toBbox(mask).tolist())
    except (TypeError, KeyError) as error:
        raise ValueError(f"not a run-length encoding: {error}") from None


def _picture_size(record: dict[str, Any], picture: Path | None) -> tuple[int, int]:
    if "width" in record and "height" in record:
        return positive(record["width"], "width"), positive(record["height"], "height")
    if picture is None:
        raise BadEntryError("give width and height, or a file_name beside the file")
    return upright_size(picture)
