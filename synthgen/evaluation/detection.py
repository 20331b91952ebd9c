"""A detector's view of a dataset, with the layout as the truth: COCO's AP, IoU, offsets, counts."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from synthgen.annotations import Category
from synthgen.geometry import box_sides, xyxy_to_xywh
from synthgen.layouts.base import Layout
from synthgen.verification.detections import Detections
from synthgen.verification.detector.verifier import hold

MATCHED = 0.5  # IoU from which a detection shows where an object really is


@dataclass
class DetectionFigures:
    """Gathers detections picture by picture.

    Args:
        ids: category ids of the names.
        threshold: score from which a detection counts as an object.
    """

    ids: dict[str, int]
    threshold: float = 0.3
    truths: list[dict[str, Any]] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)
    offsets: list[NDArray[np.float64]] = field(default_factory=list)
    wrong: int = 0
    unasked: int = 0
    held: int = 0
    images: int = 0

    def add(self, layout: Layout, detections: Detections) -> None:
        """One picture: its labels, and what a detector says is in it."""
        detections = detections.inside(layout.width, layout.height)
        self.images += 1
        known = [i for i, name in enumerate(detections.categories) if name in self.ids]
        for i, name in enumerate(layout.categories):
            self.truths.append(
                {
                    **coco_box(layout.boxes[i]),
                    "id": len(self.truths) + 1,
                    "image_id": self.images,
                    "category_id": self.ids[name],
                    "iscrowd": 0,
                }
            )
        for i in known:
            category = self.ids[detections.categories[i]]
            box = coco_box(detections.boxes[i])["bbox"]
            self.found.append(
                {
                    "image_id": self.images,
                    "category_id": category,
                    "bbox": box,
                    "score": float(detections.scores[i]),
                }
            )
        verdict = hold(layout, detections, self.threshold)
        assert verdict.ious is not None
        assert verdict.found is not None
        self.ious += verdict.ious.tolist()
        self.held += int(((verdict.ious >= MATCHED) & (verdict.scores >= self.threshold)).sum())
        self.unasked += len(verdict.unasked)
        sure = [detections.categories[i] for i in known if detections.scores[i] >= self.threshold]
        self.wrong += sum(
            abs(sure.count(name) - layout.categories.count(name)) for name in self.ids
        )
        for box, there in zip(
            layout.boxes[verdict.ious >= MATCHED],
            verdict.found[verdict.ious >= MATCHED],
            strict=True,
        ):
            sides = box_sides(box).astype(np.float64)
            centre = (
                ((there[:2] + there[2:]) - (box[:2] + box[2:])) / 2 / sides
            )  # box_centres rounds otherwise
            self.offsets.append(np.concatenate([centre, box_sides(there) / sides]))

    def figures(self) -> dict[str, float]:
        """The figures of all pictures.

        Returns:
            ap, ap50, ap75: COCO's, the layout as the truth; iou: mean over boxes of the best IoU with a detection of its
            category, 0 if none; held: share of boxes with a sure detection of IoU >= 0.5; offset_x, offset_y: mean offset of
            those detections' centres, in sides of the box; scale_x, scale_y: their sides over the box's; count_error: sum of
            |found - asked| over the sum of asked; unasked: objects an image that nobody asked for.
        """
        boxes = max(1, len(self.truths))
        shift = np.mean(self.offsets, 0) if self.offsets else np.full(4, np.nan)
        names = ("offset_x", "offset_y", "scale_x", "scale_y")
        return {
            **average_precision(self.truths, self.found, self.images, self.ids),
            "iou": float(np.mean(self.ious)) if self.ious else float("nan"),
            "held": self.held / boxes,
            **{name: float(value) for name, value in zip(names, shift, strict=True)},
            "count_error": self.wrong / boxes,
            "unasked": self.unasked / max(1, self.images),
        }


def coco_box(box: NDArray[np.float32]) -> dict[str, Any]:
    """bbox xywh and area of a box xyxy."""
    bbox = xyxy_to_xywh(box.astype(np.float64)).tolist()
    return {"bbox": bbox, "area": bbox[2] * bbox[3]}


def average_precision(
    truths: Sequence[dict[str, Any]],
    found: Sequence[dict[str, Any]],
    images: int,
    ids: dict[str, int],
) -> dict[str, float]:
    """COCO's AP, AP50 and AP75, all of a picture's detections counted: with 100 objects COCO's limit of 100 would cut recall."""
    if not truths or not found:
        return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    with redirect_stdout(StringIO()):  # it prints
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i + 1} for i in range(images)],
            "annotations": list(truths),
            "categories": [Category(number, name).to_coco() for name, number in ids.items()],
            "info": {},
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(list(found)), "bbox")
        most = max(np.bincount([f["image_id"] for f in found]))
        evaluation.params.maxDets = [1, 10, max(100, int(most))]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][
        ..., 0, -1
    ]  # IoU, recall, category; all areas, all detections

    def mean(rows: NDArray[np.float64]) -> float:
        known = rows[rows > -1]
        return float(known.mean()) if known.size else float("nan")

    return {"ap": mean(precision), "ap50": mean(precision[0]), "ap75": mean(precision[5])}
