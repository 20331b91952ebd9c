"""One sample: a picture and what is known of it, and its forms as JSON and as a row of a table."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from synthgen.annotations import Annotation
from synthgen.geometry import FARTHEST
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
CONDITION_TYPES = (pa.string(), pa.float64())
VERIFIED = ("failed", "unasked", "repairs")
"""Of a picture that was looked at: boxes that do not hold, objects that nobody asked for, how often windows were repainted."""
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
"""In the tables of a dataset that was merged: what a sample was in the dataset that it came from."""
OPTIONAL = ("source",)
"""What the tables of older datasets lack."""
IMAGE_FORMATS = ("jpg", "png", "webp")
FIELDS = ("index", "key", "width", "height", "prompt", "seed", "attempt")
PLAIN = (*FIELDS, "shard", "n_boxes", "image_format", "image_bytes", "image_sha256")  # of every row
OF_EVERY_BOX = ("bbox", "category_id", "category", "area", "iscrowd")


def table_schema(names: Iterable[str]) -> pa.Schema:
    """SCHEMA, a column for each condition (`Sample.conditions`) among the names, and ORIGIN if it is: words, and numbers of
    what the camera did."""
    names = list(names)
    conditions = [(name, CONDITION_TYPES[is_number(name)]) for name in names if is_condition(name)]
    return pa.schema([*SCHEMA, *conditions, *([ORIGIN] if ORIGIN.name in names else [])])


def is_number(condition: str) -> bool:
    """Whether a condition is a number, and not words."""
    return condition.startswith("camera_")


def is_condition(name: str) -> bool:
    """Whether a column is a condition: what a table has beyond SCHEMA and ORIGIN."""
    return (
        name not in SCHEMA.names and name != ORIGIN.name and CONDITION.fullmatch(name) is not None
    )


def conditions_of(row: dict[str, Any]) -> dict[str, Any]:
    """The conditions of a row."""
    return {name: value for name, value in row.items() if is_condition(name)}


@dataclass(frozen=True)
class Sample:
    """A finished sample.

    Attributes:
        image: encoded picture.
        verified: VERIFIED by name, if the picture was looked at.
        conditions: what was drawn for the picture: weather, light, season and style, and camera_EFFECT_PARAMETER, None where the
            effect spared it; all that the job asks for, so the same keys in each sample.
        annotations: one a box.
        source: JSON of what else the COCO file that it was imported from says: {"image": {}, "annotations": [{}, one a box]}.
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
        """What `<key>.json` holds."""
        record = {name: getattr(self, name) for name in FIELDS}
        more = {
            name: value
            for name in ("verified", "source", "origin")
            if (value := getattr(self, name)) is not None
        }
        drawn = {"conditions": self.conditions} if self.conditions else {}
        annotations = [annotation.to_record() for annotation in self.annotations]
        return to_json({**record, **more, **drawn, "annotations": annotations}).encode()

    def row(self, shard: str) -> dict[str, Any]:
        """The same as one row of `table_schema`; `segmentation` is the counts of the run-length encoding."""
        columns = {
            name: [getattr(a, name) for a in self.annotations] for name in ANNOTATION_COLUMNS
        }
        columns["segmentation"] = [(a.segmentation or {}).get("counts") for a in self.annotations]
        verified = dict.fromkeys(VERIFIED) if self.verified is None else self.verified
        plain = {n: getattr(self, n) for n in (*FIELDS, "image_format", "source")}
        hashes = {
            "image_bytes": len(self.image),
            "image_sha256": hashlib.sha256(self.image).hexdigest(),
        }
        came_from = {} if self.origin is None else {"origin": self.origin}
        counted = {**plain, "shard": shard, "n_boxes": len(self.annotations)}
        return {**counted, **verified, **columns, **hashes, **self.conditions, **came_from}


def table_of(samples: Sequence[Sample], shard: str) -> pa.Table:
    """The rows of a shard."""
    rows = [sample.row(shard) for sample in samples]
    return pa.Table.from_pylist(rows, table_schema(rows[0]))


def parse_sample(record: bytes, image: bytes, image_format: str) -> Sample:
    """The sample whose `<key>.json` and picture these are.

    Raises:
        ValueError: it is not the JSON that `Sample.json` writes.
    """
    try:
        data = from_json(record)
        plain = {name: data[name] for name in FIELDS if name != "key"}
        more = {name: data.get(name) for name in ("verified", "source", "origin")} | {
            "conditions": data.get("conditions", {})
        }
        annotations = tuple(map(Annotation.from_coco, data["annotations"]))
        sample = Sample(
            **plain, annotations=annotations, image=image, image_format=image_format, **more
        )
        fault = row_fault(table_of([sample], "").to_pylist()[0])
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
    if not all(map(is_condition, sample.conditions)) or (
        sample.verified is not None and set(sample.verified) != set(VERIFIED)
    ):
        fault = "conditions or verified have other keys than there are"
    if fault or sample.json() != record:
        raise ValueError(f"its json is not what this version writes{f': {fault}' if fault else ''}")
    return sample


def row_fault(row: dict[str, Any]) -> str | None:
    """What keeps a row of SCHEMA from being a sample's, whatever its values mean; None: nothing."""
    missing = [name for name in PLAIN if row[name] is None]
    if missing:
        return f"{missing[0]} is missing"
    if row["key"] != sample_key(row["index"]):
        return f"key does not match index {row['index']}"
    if row["width"] < 1 or row["height"] < 1 or row["image_format"] not in IMAGE_FORMATS:
        return f"a {row['image_format']!r} of {row['width']} x {row['height']} px is no picture"
    for name in ANNOTATION_COLUMNS:
        if row[name] is None or len(row[name]) != row["n_boxes"]:
            return f"{name} has not one value for each of {row['n_boxes']} boxes"
        if name in OF_EVERY_BOX and None in row[name]:
            return f"{name} is missing of a box"
    for box in row["bbox"]:
        if len(box) != 4 or not all(map(_is_sound, box)):
            return f"bbox {box} is not four finite numbers"
    for name in ("area", "score", "iou"):
        for value in row[name]:
            if value is not None and not _is_sound(value):
                return f"{name} {value} of a box is no finite number"
    for (
        name,
        value,
    ) in row.items():  # a condition is the only number with a fraction outside the lists
        if isinstance(value, float) and not _is_sound(value):
            return f"{name} {value} is no finite number"
    return None


def _is_sound(value: float | None) -> bool:
    """Whether a number is one that annotations have: not missing, no NaN, and not beyond all images."""
    return value is not None and abs(value) <= FARTHEST**2


def sample_key(index: int) -> str:
    """The name of a sample inside its shard: nine digits, no dots (a WebDataset key ends at the first dot)."""
    return f"{index:09d}"


def annotations_of(row: dict[str, Any]) -> list[Annotation]:
    """Return the annotations of a row of SCHEMA."""
    size = [row["height"], row["width"]]
    result = []
    for i in range(row["n_boxes"]):
        values = {name: row[name][i] for name in ANNOTATION_COLUMNS}
        if values["segmentation"] is not None:
            values["segmentation"] = {"size": size, "counts": values["segmentation"]}
        result.append(Annotation.from_coco(values))
    return result
