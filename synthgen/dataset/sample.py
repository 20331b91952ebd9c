"""One sample: an image with its metadata, as JSON and as a row of a table."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from synthgen.annotations import Annotation
from synthgen.geometry import MAX_COORDINATE
from synthgen.strict_json import from_json, to_json

ANNOTATION_COLUMNS = {
    "bbox": pa.list_(pa.float64()),
    "category_id": pa.int64(),
    "category": pa.string(),
    "phrase": pa.string(),
    "area": pa.float64(),
    "iscrowd": pa.int64(),
    "score": pa.float64(),
    "iou": pa.float64(),
    "action": pa.string(),
    "segmentation": pa.string(),
}
VERIFIED = ("failed", "unasked", "repairs")
"""Counts of an image that was verified: failed boxes, false positives, repainted windows."""
SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("key", pa.string()),
        ("shard", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("attempt", pa.int64()),
        ("n_boxes", pa.int64()),
        *((name, pa.int64()) for name in VERIFIED),
        *((name, pa.list_(kind)) for name, kind in ANNOTATION_COLUMNS.items()),
        ("image_format", pa.string()),
        ("image_bytes", pa.int64()),
        ("image_sha256", pa.string()),
        ("source", pa.string()),
    ]
)
CONDITION = re.compile(r"[a-z][a-z0-9_]{0,63}")
ORIGIN = pa.field(
    "origin", pa.struct([("dataset", pa.string()), ("index", pa.int64()), ("key", pa.string())])
)
"""A column of merged datasets: what a sample was in the dataset that it came from."""
OPTIONAL = ("source",)
"""Columns that the tables of older datasets lack."""
IMAGE_FORMATS = ("jpg", "png", "webp")
FIELDS = ("index", "key", "width", "height", "prompt", "seed", "attempt")
NON_NULL = (*FIELDS, "shard", "n_boxes", "image_format", "image_bytes", "image_sha256")
"""Columns that have a value in every row."""
NON_NULL_OF_BOXES = ("bbox", "category_id", "category", "area", "iscrowd")
"""Columns that have a value for every box."""


def build_table_schema(names: Iterable[str]) -> pa.Schema:
    """Return the schema of a table with columns of these names.

    It is SCHEMA with a column for each condition (`Sample.conditions`) and, if it is among the
    names, ORIGIN. Conditions are text, or float64 if they are parameters of camera effects.
    """
    names = list(names)
    schema = SCHEMA
    for name in names:
        if is_condition(name):
            schema = schema.append(pa.field(name, pa.float64() if is_number(name) else pa.string()))
    return schema.append(ORIGIN) if ORIGIN.name in names else schema


def is_number(condition: str) -> bool:
    """Return whether a condition is a number rather than text."""
    return condition.startswith("camera_")


def is_condition(name: str) -> bool:
    """Return whether a column is a condition, so neither in SCHEMA nor ORIGIN."""
    if name in SCHEMA.names or name == ORIGIN.name:
        return False
    return CONDITION.fullmatch(name) is not None


def read_conditions(row: dict[str, Any]) -> dict[str, Any]:
    """Return the conditions of a row."""
    return {name: value for name, value in row.items() if is_condition(name)}


@dataclass(frozen=True)
class Sample:
    """A finished sample.

    Attributes:
        index: the index of the sample in its dataset, from 0.
        width: the width of the image in px.
        height: the height of the image in px.
        prompt: the prompt that the image was generated from.
        seed: the seed of the job.
        attempt: which attempt the image comes from, from 0.
        annotations: one per box.
        image: the encoded image.
        image_format: one of IMAGE_FORMATS.
        verified: the counts of VERIFIED by name, if the image was verified.
        conditions: what was sampled for the image: weather, light, season and style, and
            camera_EFFECT_PARAMETER, None where the effect was not applied. A job gives each of
            its samples the same keys.
        source: JSON of the further fields of the COCO file that the sample was imported from:
            {"image": {}, "annotations": [{}, one per box]}.
        origin: fields of ORIGIN by name, if the sample was merged.
    """

    index: int
    width: int
    height: int
    prompt: str
    seed: int
    attempt: int
    annotations: tuple[Annotation, ...]
    image: bytes
    image_format: str
    verified: dict[str, int] | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    source: str | None = None
    origin: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        return sample_key(self.index)

    def json(self) -> bytes:
        """Return the content of `<key>.json`."""
        record = {name: getattr(self, name) for name in FIELDS}
        for name in ("verified", "source", "origin"):
            value = getattr(self, name)
            if value is not None:
                record[name] = value
        if self.conditions:
            record["conditions"] = self.conditions
        record["annotations"] = [annotation.to_record() for annotation in self.annotations]
        return to_json(record).encode()

    def row(self, shard: str) -> dict[str, Any]:
        """Return the sample as a row of the table that `build_table_schema` describes.

        `segmentation` holds the counts of the run-length encoding.

        Args:
            shard: name of the shard.
        """
        fields = {name: getattr(self, name) for name in (*FIELDS, "image_format", "source")}
        fields["shard"] = shard
        fields["n_boxes"] = len(self.annotations)
        columns = {}
        for name in ANNOTATION_COLUMNS:
            columns[name] = [getattr(annotation, name) for annotation in self.annotations]
        masks = [annotation.segmentation or {} for annotation in self.annotations]
        columns["segmentation"] = [mask.get("counts") for mask in masks]
        verified = dict.fromkeys(VERIFIED) if self.verified is None else self.verified
        origin = {} if self.origin is None else {"origin": self.origin}
        return {
            **fields,
            **verified,
            **columns,
            "image_bytes": len(self.image),
            "image_sha256": hashlib.sha256(self.image).hexdigest(),
            **self.conditions,
            **origin,
        }


def table_of(samples: Sequence[Sample], shard: str) -> pa.Table:
    """Return the table of a shard, a row per sample.

    Args:
        shard: name of the shard.
    """
    rows = [sample.row(shard) for sample in samples]
    return pa.Table.from_pylist(rows, build_table_schema(rows[0]))


def parse_sample(record: bytes, image: bytes, image_format: str) -> Sample:
    """Return the sample with this `<key>.json` and image.

    Raises:
        ValueError: the record is not JSON that `Sample.json` writes.
    """
    try:
        data = from_json(record)
        values = {name: data[name] for name in FIELDS if name != "key"}
        for name in ("verified", "source", "origin"):
            values[name] = data.get(name)
        sample = Sample(
            **values,
            conditions=data.get("conditions", {}),
            annotations=tuple(map(Annotation.from_coco, data["annotations"])),
            image=image,
            image_format=image_format,
        )
        fault = find_row_fault(table_of([sample], "").to_pylist()[0])
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        pa.ArrowException,
    ) as error:
        raise ValueError(f"its json cannot be read: {type(error).__name__} {error}") from None
    if not _has_known_keys(sample):
        fault = "conditions or verified has unknown keys"
    if fault or sample.json() != record:
        reason = f": {fault}" if fault else ""
        raise ValueError(f"its json is not what this version writes{reason}")
    return sample


def _has_known_keys(sample: Sample) -> bool:
    """Return whether the keys of `conditions` and `verified` are those that synthgen writes."""
    if not all(map(is_condition, sample.conditions)):
        return False
    return sample.verified is None or set(sample.verified) == set(VERIFIED)


def find_row_fault(row: dict[str, Any]) -> str | None:
    """Return why a row of SCHEMA is not that of a sample; None if it could be one."""
    for name in NON_NULL:
        if row[name] is None:
            return f"{name} is missing"
    if row["key"] != sample_key(row["index"]):
        return f"key does not match index {row['index']}"
    if row["width"] < 1 or row["height"] < 1 or row["image_format"] not in IMAGE_FORMATS:
        return f"a {row['image_format']!r} of {row['width']} x {row['height']} px is not an image"
    for name in ANNOTATION_COLUMNS:
        if row[name] is None or len(row[name]) != row["n_boxes"]:
            return f"{name} does not have one value for each of {row['n_boxes']} boxes"
        if name in NON_NULL_OF_BOXES and None in row[name]:
            return f"{name} is missing for a box"
    for box in row["bbox"]:
        if len(box) != 4 or not all(map(_is_sound, box)):
            return f"bbox {box} is not four finite numbers"
    for name in ("area", "score", "iou"):
        for value in row[name]:
            if value is not None and not _is_sound(value):
                return f"{name} {value} of a box is not a finite number"
    for name, value in row.items():
        # Conditions are the only floats that are not in a list.
        if isinstance(value, float) and not _is_sound(value):
            return f"{name} {value} is not a finite number"
    return None


def _is_sound(value: float | None) -> bool:
    """Return whether a number is neither missing nor NaN, nor larger than any image allows."""
    return value is not None and abs(value) <= MAX_COORDINATE**2


def sample_key(index: int) -> str:
    """Return the name of a sample in its shard: nine digits, without a dot.

    A WebDataset key ends at the first dot.
    """
    return f"{index:09d}"


def format_image_name(row: dict[str, Any]) -> str:
    """Return the name of a row's image in the tar of its shard."""
    return f"{row['key']}.{row['image_format']}"


def read_annotations(row: dict[str, Any]) -> list[Annotation]:
    """Return the annotations of a row of SCHEMA."""
    size = [row["height"], row["width"]]
    annotations = []
    for i in range(row["n_boxes"]):
        values = {name: row[name][i] for name in ANNOTATION_COLUMNS}
        if values["segmentation"] is not None:
            values["segmentation"] = {"size": size, "counts": values["segmentation"]}
        annotations.append(Annotation.from_coco(values))
    return annotations
