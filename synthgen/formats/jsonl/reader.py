"""Rows of JSON lines or of a Parquet table, a picture a row."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synthgen.dataset.categories import COCO_IDS
from synthgen.formats.entries import (
    BadEntryError,
    Entry,
    Problem,
    UnreadableSourceError,
    as_boxes,
    converted,
    corners,
    image_below,
    is_crowd,
    is_finite,
    positive,
    read_lines,
    text,
    xyxy,
)
from synthgen.formats.images import upright_size
from synthgen.formats.masks import run_length
from synthgen.formats.source import AnnotatedImages, Columns, Source

TABLES = (".parquet",)
LINES = (".jsonl", ".ndjson")
DOCUMENT_FORM = re.compile(
    r"label_(\d+)_bbox_" + "_".join([r"(-?\d+(?:\.\d+)?)"] * 4)
)  # x, y, width, height in px
A_BOX_EACH: dict[str, tuple[type, ...]] = {
    "phrases": (str,),
    "masks": (dict,),
    "depth": (int, float),
}
OBJECTS = "objects"  # Hugging Face's column of boxes
LABELS = (
    "boxes",
    "bbox",
    "masks",
    "categories",
    "category",
    "iscrowd",
    OBJECTS,
)  # columns that say what is in the picture
LOADED_IMAGE = (
    "image"  # what `datasets` calls the column `file_name` of a folder of images, once it is loaded
)


@dataclass(frozen=True)
class Dataset(AnnotatedImages):
    """A file of rows; its attributes are the arguments of `read`."""

    path: Path
    images: Path | None
    columns: Columns
    ids: Mapping[str, int]

    def entries(self, whole: bool = False) -> Iterator[Entry | Problem]:
        return read(self.path, self.images, self.columns, self.ids, whole, once=True)


def accepts(path: Path) -> bool:
    """Return whether a file holds rows, by its name."""
    return path.suffix.lower() in LINES + TABLES


def find_sources(folder: Path, asked: bool) -> Iterator[Path]:
    """Yield the files of a folder that hold rows."""
    yield from sorted(p for suffix in LINES + TABLES for p in folder.glob(f"[!.]*{suffix}"))


def open_source(source: Source) -> Dataset:
    """Return the rows of a file."""
    return Dataset(source.path, source.images, source.columns, source.ids)


def read(
    path: Path,
    images: Path | None = None,
    columns: Columns | None = None,
    ids: Mapping[str, int] | None = None,
    whole: bool = False,
    once: bool = False,
) -> Iterator[Entry | Problem]:
    """The annotated pictures of a file, one a row.

    Args:
        images: the folder that file names start from; null: that of the file.
        columns: where a row has what.
        ids: category ids that annotation strings may have beside COCO's, by name.
        whole: keep what is known of each box beside its place: masks, held against the size of the picture; and crowds.
        once: rows that name the same picture and label it otherwise are Problems: none of them has all of its labels.
    """
    columns = columns or Columns()
    torn = _torn(path, columns) if once else {}
    names = {i: name for name, i in (ids or {}).items()} | {i: name for name, i in COCO_IDS.items()}
    row = _Row(images or path.parent, columns, names, whole, _class_names(path))
    for place, record in _rows(path):
        try:
            if isinstance(record, BadEntryError):
                raise record
            if isinstance(record, dict) and (others := torn.get(_picture_name(record, columns))):
                name = _picture_name(record, columns)
                raise BadEntryError(
                    f"{name!r} stands in {others} rows with different labels; put all of them in one row"
                )
            yield row.entry(record, place)
        except BadEntryError as error:
            yield from error.problems(place)


def _rows(path: Path, columns: tuple[str, ...] | None = None) -> Iterator[tuple[str, Any]]:
    """Place and content of each row; of one that cannot be read a BadEntryError.

    Args:
        columns: of a table, those to read; null: all.
    """
    return _table(path, columns) if path.suffix in TABLES else _lines(path)


def _picture_name(record: dict[str, Any], columns: Columns) -> str | None:
    """The name of a row's picture as it stands there."""
    name = record.get(columns.image, record.get("file_name"))
    return name if isinstance(name, str) else None


def _torn(path: Path, columns: Columns) -> dict[str | None, int]:
    """Pictures that several rows name with different labels, and how many rows."""
    said: dict[str, bytes] = {}
    rows: Counter[str] = Counter()
    torn: set[str] = set()
    keys = (columns.annotation, *LABELS)
    for _, record in _rows(path, (columns.image, "file_name", *keys)):
        name = _picture_name(record, columns) if isinstance(record, dict) else None
        if name is None:
            continue
        labels = [record.get(key) for key in keys]
        digest = hashlib.sha256(repr(labels).encode(errors="surrogatepass")).digest()
        rows[name] += 1
        if said.setdefault(name, digest) != digest:
            torn.add(name)
    return {name: rows[name] for name in torn}


def _class_names(path: Path) -> list[str]:
    """The names of the classes that a table of Hugging Face `datasets` counts in its column `objects`; else none."""
    if path.suffix not in TABLES:
        return []
    import pyarrow as pa

    from synthgen.storage.parquet import open_input, open_parquet

    try:
        with open_input(path) as source, open_parquet(source) as file:
            metadata = file.schema_arrow.metadata or {}
        stated = json.loads(metadata[b"huggingface"])
        objects = stated["info"]["features"][OBJECTS]
        objects = objects[0] if isinstance(objects, list) else objects
        objects = objects.get("feature", objects)
        feature = objects.get("categories", objects.get("category"))
        names = (
            feature.get("feature", feature)["names"]
            if isinstance(feature, dict)
            else feature[0]["names"]
        )
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError, AttributeError):
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    return ((place, _parsed(line)) for place, line in read_lines(path))


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return BadEntryError(f"not JSON: {error}")


def _table(path: Path, columns: tuple[str, ...] | None = None) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa

    from synthgen.storage.parquet import open_input, open_parquet

    try:
        with open_input(path) as source, open_parquet(source) as file:
            there = (
                None
                if columns is None
                else [name for name in file.schema_arrow.names if name in columns]
            )
            batches = file.iter_batches(1024, columns=there, use_threads=False)
            rows = (record for batch in batches for record in batch.to_pylist())
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
    classes: list[str]

    def entry(self, record: Any, place: str) -> Entry:
        if not isinstance(record, dict):
            raise BadEntryError(f"{str(record)[:40]!r} is not a mapping")
        if (
            isinstance(record.get(OBJECTS), dict | list)
            and "boxes" not in record
            and "bbox" not in record
        ):
            record = record | _objects(record[OBJECTS])
        if self.columns.annotation in record:
            boxes, names = self.document_boxes(record[self.columns.annotation])
        elif self.columns.annotation != Columns.annotation:
            raise BadEntryError(missing(self.columns.annotation, "annotations", record))
        else:
            boxes, names = self.plain_boxes(record)
        embedded = self.embedded(record)
        picture = None if embedded is not None else self.picture(record)
        width, height = _picture_size(record, picture if embedded is None else embedded)
        crowds = _crowds(record, len(names))
        lists: dict[str, Any] = {
            key: _a_box_each(record, key, len(names)) for key in A_BOX_EACH if record.get(key)
        }
        more, lost = self.more(lists, crowds, width, height, place) if self.whole else (None, ())
        caption = self.caption(record)
        entry = Entry(
            place,
            width,
            height,
            as_boxes(boxes),
            names,
            **lists,
            caption=caption,
            picture=picture,
            more=more,
        )
        entry = replace(entry, lost_masks=lost, embedded=embedded)
        if self.whole or not any(crowds):
            return entry
        return entry.select([i for i, crowd in enumerate(crowds) if not crowd])

    def more(
        self, lists: dict[str, Any], crowds: list[bool], width: int, height: int, place: str
    ) -> tuple[tuple[dict[str, Any], ...] | None, tuple[Problem, ...]]:
        """What is known of each box beside its place, if anything is; and why masks were dropped."""
        more: list[dict[str, Any]] = [{"iscrowd": 1} if crowd else {} for crowd in crowds]
        lost = []
        for i, mask in enumerate(lists.get("masks", ())):
            try:
                more[i]["segmentation"] = run_length(mask, width, height)
            except ValueError as error:
                lost.append(Problem(place, f"masks[{i}]: {error}"))
        return (tuple(more) if "masks" in lists or any(crowds) else None), tuple(lost)

    def embedded(self, record: dict[str, Any]) -> bytes | None:
        """The bytes of the picture, if the row itself holds them, as tables of `datasets` do."""
        held = record.get(LOADED_IMAGE if self.columns.image not in record else self.columns.image)
        data = held.get("bytes") if isinstance(held, dict) else None
        return data if isinstance(data, bytes) else None

    def picture(self, record: dict[str, Any]) -> Path | None:
        key = self.columns.image
        if key == LOADED_IMAGE and key not in record and "file_name" in record:
            key = "file_name"
        if key != Columns.image and key not in record:
            raise BadEntryError(missing(key, "the picture", record))
        return image_below(self.folder, record[key], key) if key in record else None

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
            raise BadEntryError(
                f"categories: missing; a name for each box (or a column {self.columns.annotation})"
            )
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
        return rows, tuple(converted(names, self.name, "categories"))

    def name(self, value: Any) -> str:
        """The name of a category; of the number of a class its name, where the file has names, else the number.

        Raises:
            ValueError: it is neither a name nor a number, or no class has it.
        """
        if isinstance(value, str) and value:
            return value
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{value!r} is not a name")
        if self.classes and not 0 <= value < len(self.classes):
            raise ValueError(
                f"{value!r} is not the number of a class; there are 0 to {len(self.classes) - 1}"
            )
        return self.classes[value] if self.classes else str(value)


def _objects(objects: Any) -> dict[str, Any]:
    """The columns of Hugging Face's `objects`: a mapping of lists, or a list of mappings.

    Raises:
        BadEntryError: the mappings have not the same keys.
    """
    if isinstance(objects, list):
        if not all(isinstance(item, dict) and item.keys() == objects[0].keys() for item in objects):
            raise BadEntryError(
                f"{OBJECTS}: {str(objects)[:60]}: not a mapping of lists, and no list of mappings alike"
            )
        objects = {
            key: [item[key] for item in objects]
            for key in (objects[0] if objects else ("bbox", "categories"))
        }
    return {
        key: objects[key]
        for key in ("bbox", "categories", "category", "iscrowd")
        if objects.get(key) is not None
    }


def _crowds(record: dict[str, Any], boxes: int) -> list[bool]:
    """Whether each box is a crowd: none is where the row does not say."""
    if record.get("iscrowd") is None:
        return [False] * boxes
    values = converted(_list(record, "iscrowd"), is_crowd, "iscrowd")
    if len(values) != boxes:
        raise BadEntryError(f"iscrowd: {len(values)} given for {boxes} boxes")
    return values


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
    if not all(
        isinstance(value, kind) and (key != "depth" or is_finite(value)) for value in values
    ):
        raise BadEntryError(f"{key}: {record[key]!r}: not of the kind that it needs for each box")
    return values


def _mask_box(mask: Any) -> list[float]:
    from pycocotools import mask as coco_mask

    size = mask.get("size") if isinstance(mask, dict) else None
    if not isinstance(size, list) or len(size) != 2:
        raise ValueError(f"{mask!r} is not a run-length encoding")
    height, width = (positive(side, "size") for side in size)
    return xyxy(coco_mask.toBbox(run_length(mask, width, height)).tolist())


def _picture_size(record: dict[str, Any], picture: Path | bytes | None) -> tuple[int, int]:
    if record.get("width") is not None or record.get("height") is not None:
        return positive(record.get("width"), "width"), positive(record.get("height"), "height")
    if picture is None:
        raise BadEntryError("give width and height, or a file_name beside the file")
    return upright_size(picture)
