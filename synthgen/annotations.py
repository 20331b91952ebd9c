"""Labels: the type that a labelled object has from the engine to the exports, and a category's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from synthgen.geometry import Box

DEFAULT_PHRASE = "a {category}"
"""Template of the prompt of an object that is given none."""


def default_phrase(category: str) -> str:
    """Return the prompt of an object of a category that is given none."""
    return DEFAULT_PHRASE.format(category=category)


@dataclass(frozen=True)
class Category:
    """A category as COCO files name it.

    Attributes:
        id: a whole number from 1; COCO's own for COCO's names.
    """

    id: int
    name: str

    def to_coco(self) -> dict[str, Any]:
        """Return COCO's record of the category, which is its own supercategory."""
        return {"id": self.id, "name": self.name, "supercategory": self.name}


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """A labelled object of an image: what COCO says of it, and what else is known; None is unknown.

    Attributes:
        bbox: x, y, width, height in px.
        category_id: the id of the category in the dataset.
        category: its name.
        phrase: what the object was prompted with.
        area: px² of the mask where there is one, else of the box.
        iscrowd: 1 of a crowd, else 0.
        score: of the verifier, in [0, 1].
        iou: of the box and the one that a detector found, in [0, 1].
        action: what was done about the verdict: "", "repaired", "tightened" or "flagged".
        segmentation: COCO's run-length encoding: {"size": [height, width], "counts": text}.
    """

    bbox: Box
    category_id: int
    category: str
    phrase: str | None = None
    area: float
    iscrowd: int = 0
    score: float | None = None
    iou: float | None = None
    action: str | None = None
    segmentation: dict[str, Any] | None = None

    @classmethod
    def from_coco(cls, record: Mapping[str, Any]) -> "Annotation":
        """Return the annotation that a record of `to_coco` or `to_record` holds.

        Values are taken as they are, and what is missing is None: who reads a file that others may
        have written checks them.
        """
        values: dict[str, Any] = {name: record.get(name) for name in COCO_KEYS}
        if isinstance(values["bbox"], list):
            values["bbox"] = tuple(values["bbox"])
        return cls(**values)

    def to_coco(self) -> dict[str, Any]:
        """Return the record of a COCO file but for its ids; what is None is left out."""
        return self._record(COCO_KEYS)

    def to_record(self) -> dict[str, Any]:
        """Return the same record in the order of a sample's JSON.

        There, what a verifier says stands before the area.
        """
        return self._record(SAMPLE_KEYS)

    def _record(self, keys: Iterable[str]) -> dict[str, Any]:
        record = {}
        for key in keys:
            value = getattr(self, key)
            if value is not None:
                record[key] = list(value) if key == "bbox" else value
        return record


COCO_KEYS = tuple(field.name for field in fields(Annotation))
SAMPLE_KEYS = (
    "bbox",
    "category_id",
    "category",
    "phrase",
    "score",
    "iou",
    "action",
    "area",
    "iscrowd",
    "segmentation",
)
