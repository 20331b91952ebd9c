"""The reader of JSON lines and Parquet tables with one image in each row."""

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
    convert_all,
    is_finite,
    parse_iscrowd,
    parse_side,
    parse_text,
    parse_xywh,
    parse_xyxy,
    read_lines,
    resolve_image,
    stack_boxes,
)
from synthgen.formats.images import read_upright_size
from synthgen.formats.masks import encode_mask
from synthgen.formats.source import AnnotatedImages, Columns, Source

TABLES = (".parquet",)
LINES = (".jsonl", ".ndjson")
NUMBER = r"(-?\d+(?:\.\d+)?)"
ANNOTATION_STRING = re.compile(rf"label_(\d+)_bbox_{NUMBER}_{NUMBER}_{NUMBER}_{NUMBER}")
"""A category id, then x, y, width, height in px."""
BoxesAndNames = tuple[list[list[float]], tuple[str, ...]]
"""Boxes, xyxy in px, and the category of each."""
BOX_VALUES: dict[str, tuple[tuple[type, ...], str]] = {
    "phrases": ((str,), "a text"),
    "masks": ((dict,), "a mapping"),
    "depth": ((int, float), "a finite number"),
}
"""Columns with a value for each box: the types of the value, and what it is, for messages."""
OBJECTS = "objects"  # Hugging Face's column of boxes
OBJECTS_KEYS = ("bbox", "categories", "category", "iscrowd")
LABELS = ("boxes", "bbox", "masks", "categories", "category", "iscrowd", OBJECTS)
"""Columns that label an image."""
LOADED_IMAGE = "image"
"""The name that `datasets` gives the column `file_name` of an image folder that it loaded."""
BATCH_ROWS = 1024  # rows of a table that are in memory at a time


@dataclass(frozen=True)
class Dataset(AnnotatedImages):
    """A file of rows; the attributes are the arguments of `read`."""

    path: Path
    images: Path | None
    columns: Columns
    ids: Mapping[str, int]

    def entries(self, whole: bool = False) -> Iterator[Entry | Problem]:
        return read(self.path, self.images, self.columns, self.ids, whole, once=True)


def accepts(path: Path) -> bool:
    """Return whether a file contains rows, by its name."""
    return path.suffix.lower() in LINES + TABLES


def find_sources(folder: Path, is_format_given: bool) -> Iterator[Path]:
    """Yield the files of a folder that contain rows."""
    paths: list[Path] = []
    for suffix in LINES + TABLES:
        paths += folder.glob(f"[!.]*{suffix}")
    yield from sorted(paths)


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
    """Yield the annotated images of a file, one for each row.

    Args:
        images: the folder that file names are relative to, or None for that of the file.
        columns: the names of the columns.
        ids: category ids that annotation strings may use beside COCO's, by name.
        whole: also read crowds and masks.
        once: rows that name the same image with different labels are Problems, because none of
            them has all labels of the image.
    """
    columns = columns or Columns()
    torn_images = _count_torn_images(path, columns) if once else {}
    names: dict[int, str] = {}
    for name, category_id in (*(ids or {}).items(), *COCO_IDS.items()):
        names[category_id] = name
    parser = _RowParser(images or path.parent, columns, names, whole, _read_class_names(path))
    for place, row in _read_rows(path):
        try:
            if isinstance(row, BadEntryError):
                raise row
            image_name = _get_image_name(row, columns)
            if image_name in torn_images:
                raise BadEntryError(
                    f"{image_name!r} is in {torn_images[image_name]} rows with different labels; "
                    "put all of them in one row"
                )
            yield parser.parse(row, place)
        except BadEntryError as error:
            yield from error.problems(place)


def _read_rows(path: Path, columns: tuple[str, ...] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield the place and the content of each row, or a BadEntryError if it cannot be read.

    Args:
        columns: the columns of a table to read, or None for all.
    """
    return _table(path, columns) if path.suffix in TABLES else _read_json_lines(path)


def _get_image_name(row: Any, columns: Columns) -> str | None:
    """Return the file name of a row's image, unchanged; None if the row has none."""
    if not isinstance(row, dict):
        return None
    name = row.get(columns.image, row.get("file_name"))
    return name if isinstance(name, str) else None


def _count_torn_images(path: Path, columns: Columns) -> dict[str, int]:
    """Return the images whose labels differ between rows, and the number of their rows."""
    label_columns = (columns.annotation, *LABELS)
    digests: dict[str, bytes] = {}
    row_counts: Counter[str] = Counter()
    torn_images: set[str] = set()
    for _, row in _read_rows(path, (columns.image, "file_name", *label_columns)):
        name = _get_image_name(row, columns)
        if name is None:
            continue
        labels = [row.get(column) for column in label_columns]
        digest = hashlib.sha256(repr(labels).encode(errors="surrogatepass")).digest()
        row_counts[name] += 1
        if digests.setdefault(name, digest) != digest:
            torn_images.add(name)
    return {name: row_counts[name] for name in torn_images}


def _read_class_names(path: Path) -> list[str]:
    """Return the class names that a table of Hugging Face `datasets` has for `objects`, if any."""
    if path.suffix not in TABLES:
        return []
    import pyarrow as pa

    from synthgen.storage.parquet import open_input, open_parquet

    try:
        with open_input(path) as source, open_parquet(source) as file:
            metadata = file.schema_arrow.metadata or {}
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = _find_class_names(features[OBJECTS])
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError, AttributeError):
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return []
    return names


def _find_class_names(objects: Any) -> Any:
    """Return the class names in the feature `objects`, in any of the forms that `datasets` writes.

    Raises:
        LookupError, TypeError, AttributeError: the feature has another form.
    """
    if isinstance(objects, list):
        objects = objects[0]
    objects = objects.get("feature", objects)
    category = objects.get("categories", objects.get("category"))
    if isinstance(category, dict):
        return category.get("feature", category)["names"]
    return category[0]["names"]


def _read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place and the content of each line, or a BadEntryError if it is not JSON."""
    for place, line in read_lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            row = BadEntryError(f"not JSON: {error}")
        yield place, row


def _table(path: Path, columns: tuple[str, ...] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield the place and the content of each row of a table, without values that are null."""
    import pyarrow as pa

    from synthgen.storage.parquet import open_input, open_parquet

    try:
        with open_input(path) as source, open_parquet(source) as file:
            selected = None
            if columns is not None:
                selected = [name for name in file.schema_arrow.names if name in columns]
            number = 0
            for batch in file.iter_batches(BATCH_ROWS, columns=selected, use_threads=False):
                for record in batch.to_pylist():
                    number += 1
                    row = {key: value for key, value in record.items() if value is not None}
                    yield f"{path}: row {number}", row
    except (OSError, pa.ArrowException) as error:
        raise UnreadableSourceError(f"{path}: cannot be read: {error}") from None


@dataclass(frozen=True)
class _RowParser:
    """Makes entries of rows.

    A row has boxes (xyxy), bbox (xywh), masks (run-length encodings) or annotation strings such as
    label_4_bbox_x_y_w_h.

    Attributes:
        folder: the folder that file names are relative to.
        names: the category of each id in annotation strings.
        whole: also read crowds and masks.
        classes: the names of numbered classes, if the file has them.
    """

    folder: Path
    columns: Columns
    names: dict[int, str]
    whole: bool
    classes: list[str]

    def parse(self, row: Any, place: str) -> Entry:
        """Return the entry of a row.

        Raises:
            BadEntryError: something in the row is missing or not valid.
        """
        if not isinstance(row, dict):
            raise BadEntryError(f"{str(row)[:40]!r} is not a mapping")
        has_objects = isinstance(row.get(OBJECTS), dict | list)
        if has_objects and "boxes" not in row and "bbox" not in row:
            row = row | _flatten_objects(row[OBJECTS])
        boxes, names = self.parse_labels(row)
        embedded = self.find_embedded_image(row)
        image_path = self.find_image(row) if embedded is None else None
        width, height = _read_size(row, image_path if embedded is None else embedded)
        crowds = _parse_crowds(row, len(names))
        box_values: dict[str, Any] = {}
        for key in BOX_VALUES:
            if row.get(key):
                box_values[key] = _parse_box_values(row, key, len(names))
        entry = Entry(
            place,
            width,
            height,
            stack_boxes(boxes),
            names,
            **box_values,
            caption=self.parse_caption(row),
            image_path=image_path,
            embedded=embedded,
        )
        if self.whole:
            return _add_crowds_and_masks(entry, crowds)
        if any(crowds):
            return entry.select([i for i, iscrowd in enumerate(crowds) if not iscrowd])
        return entry

    def parse_labels(self, row: dict[str, Any]) -> BoxesAndNames:
        """Return the boxes and categories of a row."""
        column = self.columns.annotation
        if column in row:
            return self.parse_annotation_strings(row[column])
        if column != Columns.annotation:
            raise BadEntryError(_explain_missing_column(column, "annotations", row))
        return self.parse_boxes(row)

    def find_embedded_image(self, row: dict[str, Any]) -> bytes | None:
        """Return the bytes of the image if the row contains them, as in tables of `datasets`."""
        column = self.columns.image if self.columns.image in row else LOADED_IMAGE
        image = row.get(column)
        data = image.get("bytes") if isinstance(image, dict) else None
        return data if isinstance(data, bytes) else None

    def find_image(self, row: dict[str, Any]) -> Path | None:
        """Return the image file that a row names, or None.

        A column whose name the user gave must exist.
        """
        column = self.columns.image
        if column == LOADED_IMAGE and column not in row and "file_name" in row:
            column = "file_name"
        if column in row:
            return resolve_image(self.folder, row[column], column)
        if column != Columns.image:
            raise BadEntryError(_explain_missing_column(column, "the image", row))
        return None

    def parse_caption(self, row: dict[str, Any]) -> str | None:
        """Return the caption of a row; a list of texts is joined.

        A column whose name the user gave must exist.
        """
        column = self.columns.caption
        if column != Columns.caption and column not in row:
            raise BadEntryError(_explain_missing_column(column, "a caption", row))
        value = row.get(column)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return ", ".join(value)
        return parse_text(value, column)

    def parse_annotation_strings(self, strings: Any) -> BoxesAndNames:
        """Return the boxes and categories of strings such as label_4_bbox_359.17_146.17_112.4_213.

        The numbers are the category id, then x, y, width and height.
        """
        column = self.columns.annotation
        if not isinstance(strings, list):
            raise BadEntryError(f"{column}: {strings!r} is not a list of strings")
        labels = convert_all(strings, self.parse_annotation_string, column)
        return [box for box, _ in labels], tuple(name for _, name in labels)

    def parse_annotation_string(self, value: Any) -> tuple[list[float], str]:
        """Return the box and the category of an annotation string.

        Raises:
            ValueError: it is something else, or its category id is unknown.
        """
        match = ANNOTATION_STRING.fullmatch(str(value))
        name = self.names.get(int(match[1])) if match else None
        if not match or name is None:
            raise ValueError(f"{value!r} is not label_ID_bbox_X_Y_W_H with an id of COCO's")
        _, *numbers = match.groups()
        return parse_xywh(list(map(float, numbers))), name

    def parse_boxes(self, row: dict[str, Any]) -> BoxesAndNames:
        """Return the boxes and categories of a row without annotation strings."""
        categories = row.get("categories", row.get("category"))
        if categories is None:
            raise BadEntryError(
                f"categories: missing; a name for each box (or a column {self.columns.annotation})"
            )
        if not isinstance(categories, list):
            raise BadEntryError(f"categories: {categories!r} is not a list of names")
        if "boxes" in row:
            boxes = convert_all(_get_list(row, "boxes"), parse_xyxy, "boxes")
        elif "bbox" in row:
            boxes = convert_all(_get_list(row, "bbox"), parse_xywh, "bbox")
        elif "masks" in row:
            boxes = convert_all(_get_list(row, "masks"), _box_mask, "masks")
        else:
            raise BadEntryError("give boxes (x0, y0, x1, y1), bbox (x, y, width, height) or masks")
        if len(categories) != len(boxes):
            raise BadEntryError(f"categories: {len(categories)} names for {len(boxes)} boxes")
        return boxes, tuple(convert_all(categories, self.parse_category, "categories"))

    def parse_category(self, value: Any) -> str:
        """Return the name of a category.

        The number of a class gives its name if the file has class names, otherwise the number.

        Raises:
            ValueError: the value is neither a name nor a number, or no class has this number.
        """
        if isinstance(value, str) and value:
            return value
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{value!r} is not a name")
        if not self.classes:
            return str(value)
        if not 0 <= value < len(self.classes):
            last = len(self.classes) - 1
            raise ValueError(f"{value!r} is not the number of a class; there are 0 to {last}")
        return self.classes[value]


def _add_crowds_and_masks(entry: Entry, crowds: list[bool]) -> Entry:
    """Return the entry with iscrowd and the mask of each box, if it has crowds or masks.

    A mask that is not valid is dropped and reported in `lost_masks`; its box is kept.
    """
    more: list[dict[str, Any]] = []
    for iscrowd in crowds:
        more.append({"iscrowd": 1} if iscrowd else {})
    lost_masks: list[Problem] = []
    for i, mask in enumerate(entry.masks or ()):
        try:
            more[i]["segmentation"] = encode_mask(mask, entry.width, entry.height)
        except ValueError as error:
            lost_masks.append(Problem(entry.place, f"masks[{i}]: {error}"))
    if entry.masks is None and not any(crowds):
        return entry
    return replace(entry, more=tuple(more), lost_masks=tuple(lost_masks))


def _flatten_objects(objects: Any) -> dict[str, Any]:
    """Return the columns of Hugging Face's `objects`: a mapping of lists, or a list of mappings.

    Raises:
        BadEntryError: the mappings have different keys.
    """
    if isinstance(objects, list):
        objects = _transpose_objects(objects)
    columns: dict[str, Any] = {}
    for key in OBJECTS_KEYS:
        if objects.get(key) is not None:
            columns[key] = objects[key]
    return columns


def _transpose_objects(objects: list[Any]) -> dict[str, list[Any]]:
    """Return a list of mappings with equal keys as a mapping of lists.

    Raises:
        BadEntryError: it is something else.
    """
    if not objects:
        return {"bbox": [], "categories": []}
    for item in objects:
        if not isinstance(item, dict) or item.keys() != objects[0].keys():
            raise BadEntryError(
                f"{OBJECTS}: {str(objects)[:60]}: neither a mapping of lists "
                "nor a list of mappings with equal keys"
            )
    columns: dict[str, list[Any]] = {}
    for key in objects[0]:
        columns[key] = [item[key] for item in objects]
    return columns


def _parse_crowds(row: dict[str, Any], boxes: int) -> list[bool]:
    """Return whether each box is a crowd; without the column iscrowd none is.

    Args:
        boxes: the number of boxes.
    """
    if row.get("iscrowd") is None:
        return [False] * boxes
    crowds = convert_all(_get_list(row, "iscrowd"), parse_iscrowd, "iscrowd")
    if len(crowds) != boxes:
        raise BadEntryError(f"iscrowd: {len(crowds)} given for {boxes} boxes")
    return crowds


def _explain_missing_column(column: str, content: str, row: dict[str, Any]) -> str:
    """Return the message for a column that a row lacks."""
    return f"{column}: no such column for {content}; there are: {', '.join(map(str, row))}"


def _get_list(row: dict[str, Any], key: str) -> tuple[Any, ...]:
    """Return the items of a list in a row.

    Raises:
        BadEntryError: it is not a list.
    """
    if not isinstance(row[key], list):
        raise BadEntryError(f"{key}: {row[key]!r} is not a list")
    return tuple(row[key])


def _parse_box_values(row: dict[str, Any], key: str, boxes: int) -> tuple[Any, ...]:
    """Return the values of a column that has one for each box.

    Raises:
        BadEntryError: their number or their type is wrong.
    """
    values = _get_list(row, key)
    if len(values) != boxes:
        raise BadEntryError(f"{key}: {len(values)} given for {boxes} boxes")
    types, expected = BOX_VALUES[key]
    for value in values:
        if not isinstance(value, types) or (key == "depth" and not is_finite(value)):
            raise BadEntryError(f"{key}: {row[key]!r}: each box needs {expected}")
    return values


def _box_mask(mask: Any) -> list[float]:
    """Return the box of a run-length encoding, xyxy in px.

    Raises:
        ValueError: it is not a run-length encoding.
    """
    from pycocotools import mask as coco_mask

    size = mask.get("size") if isinstance(mask, dict) else None
    if not isinstance(size, list) or len(size) != 2:
        raise ValueError(f"{mask!r} is not a run-length encoding")
    height = parse_side(size[0], "size")
    width = parse_side(size[1], "size")
    return parse_xywh(coco_mask.toBbox(encode_mask(mask, width, height)).tolist())


def _read_size(row: dict[str, Any], image: Path | bytes | None) -> tuple[int, int]:
    """Return width and height in px, from the row or else from the image."""
    width = row.get("width")
    height = row.get("height")
    if width is not None or height is not None:
        return parse_side(width, "width"), parse_side(height, "height")
    if image is None:
        raise BadEntryError("give width and height, or a file_name beside the file")
    return read_upright_size(image)
