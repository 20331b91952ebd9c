"""One sample: a picture and what is known of it, and its forms as JSON and as a row of a table."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

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


def table_schema(conditions: Iterable[str]) -> pa.Schema:
    """SCHEMA, and a column for each condition (`Sample.conditions`): words, and numbers of what the camera did."""
    return pa.schema([*SCHEMA, *((name, CONDITION_TYPES[is_number(name)]) for name in conditions)])


def is_number(condition: str) -> bool:
    """Whether a condition is a number, and not words."""
    return condition.startswith("camera_")


def conditions_of(row: dict[str, Any]) -> dict[str, Any]:
    """The conditions of a row: what it has beyond SCHEMA."""
    return {name: value for name, value in row.items() if name not in SCHEMA.names}


@dataclass(frozen=True)
class Sample:
    """A finished sample.

    Attributes:
        image: encoded picture.
        verified: VERIFIED by name, if the picture was looked at.
        conditions: what was drawn for the picture: weather, light, season and style, and camera_EFFECT_PARAMETER, None where the
            effect spared it; all that the job asks for, so the same keys in each sample.
        annotations: one mapping a box, as COCO has them: bbox xywh in px, category_id, category, area, iscrowd, …
        source: JSON of what else the COCO file that it was imported from says: {"image": {}, "annotations": [{}, one a box]}.
    """

    index: int
    width: int
    height: int
    prompt: str
    seed: int
    attempt: int
    annotations: tuple[dict[str, Any], ...]
    image: bytes
    image_format: str
    verified: dict[str, int] | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    source: str | None = None

    @property
    def key(self) -> str:
        return sample_key(self.index)

    def json(self) -> bytes:
        """What `<key>.json` holds."""
        fields = ("index", "key", "width", "height", "prompt", "seed", "attempt")
        record = {name: getattr(self, name) for name in fields}
        more = {name: value for name in ("verified", "source") if (value := getattr(self, name)) is not None}
        drawn = {"conditions": self.conditions} if self.conditions else {}
        return json.dumps({**record, **more, **drawn, "annotations": list(self.annotations)}).encode()

    def row(self, shard: str) -> dict[str, Any]:
        """The same as one row of SCHEMA with its conditions; `segmentation` is the counts of the run-length encoding."""
        columns = {name: [a.get(name) for a in self.annotations] for name in ANNOTATION_COLUMNS}
        columns["segmentation"] = [(a.get("segmentation") or {}).get("counts") for a in self.annotations]
        verified = dict.fromkeys(VERIFIED) if self.verified is None else self.verified
        names = ("index", "key", "width", "height", "prompt", "seed", "attempt", "image_format", "source")
        plain = {name: getattr(self, name) for name in names}
        hashes = {"image_bytes": len(self.image), "image_sha256": hashlib.sha256(self.image).hexdigest()}
        return {**plain, "shard": shard, "n_boxes": len(self.annotations), **verified, **columns, **hashes, **self.conditions}


def sample_key(index: int) -> str:
    """The name of a sample inside its shard: nine digits, no dots (a WebDataset key ends at the first dot)."""
    return f"{index:09d}"


def annotations_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The annotations of a row of SCHEMA, in COCO's form; what is not known is left out."""
    size = [row["height"], row["width"]]
    result = []
    for i in range(row["n_boxes"]):
        annotation = {name: row[name][i] for name in ANNOTATION_COLUMNS if row[name][i] is not None}
        if "segmentation" in annotation:
            annotation["segmentation"] = {"size": size, "counts": annotation["segmentation"]}
        result.append(annotation)
    return result
