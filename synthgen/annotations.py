"""Labels: the types of a labelled object and of a category, from the engine to the exports."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from synthgen.geometry import Box

DEFAULT_PHRASE = "a {category}"
"""The prompt template of an object without a phrase."""


def build_default_phrase(category: str) -> str:
    """Return the prompt of an object of this category that has no phrase."""
    return DEFAULT_PHRASE.format(category=category)


@dataclass(frozen=True)
class Category:
    """A category as COCO files name it.

    Attributes:
        id: a whole number, at least 1; COCO's own id for COCO's names.
    """

    id: int
    name: str

    def to_coco(self) -> dict[str, Any]:
        """Return COCO's record of the category. The supercategory is the category itself."""
        return {"id": self.id, "name": self.name, "supercategory": self.name}


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """A labelled object of an image: COCO's keys and those that synthgen adds.

    A value that is not known is None.

    Attributes:
        bbox: x, y, width, height in px.
        category_id: the id of the category in the dataset.
        category: the name of the category.
        phrase: the prompt of the object.
        area: the area in px² of the mask if there is one, else of the box.
        iscrowd: 1 for a crowd, else 0.
        score: the verifier's score, in [0, 1].
        iou: the IoU of the box and the box that a detector found, in [0, 1].
        action: the action taken on the verdict: "", "repaired", "tightened" or "flagged".
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
        """Return the annotation of a record that `to_coco` or `to_record` returned.

        Values are not checked, and a missing value becomes None. A caller that reads files of
        other programs has to check the values.
        """
        values: dict[str, Any] = {name: record.get(name) for name in COCO_KEYS}
        if isinstance(values["bbox"], list):
            values["bbox"] = tuple(values["bbox"])
        return cls(**values)

    def to_coco(self) -> dict[str, Any]:
        """Return the record of a COCO file without its ids, leaving out what is None."""
        return self._record(COCO_KEYS)

    def to_record(self) -> dict[str, Any]:
        """Return the same record with its keys in the order of a sample's JSON.

        In that order the verifier's keys precede the area.
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
