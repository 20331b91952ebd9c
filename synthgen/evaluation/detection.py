"""Measurements of a dataset with a detector: COCO's AP, IoU, offsets and counts.

The layouts are the ground truth.
"""

from collections import Counter
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
from synthgen.verification.base import Verdict
from synthgen.verification.detections import Detections
from synthgen.verification.detector.verifier import match_boxes

MATCHED = 0.5  # IoU from which a detection shows where an object is
OFFSETS = ("offset_x", "offset_y", "scale_x", "scale_y")


@dataclass
class DetectionFigures:
    """Collects detections image by image, and computes figures of them.

    Args:
        ids: category name to id.
        threshold: score from which a detection counts as an object.

    Attributes:
        truths: COCO annotations of the labels.
        found: COCO results of the detections.
        ious: best IoU of each label with a detection of its category.
        offsets: (4,) of each matched label, in the order of OFFSETS.
        count_errors: sum of the differences between detected and asked counts.
        false_positives: number of detected objects without a label.
        matched: number of labels that a detection confirms.
        images: number of images.
    """

    ids: dict[str, int]
    threshold: float = 0.3
    truths: list[dict[str, Any]] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)
    offsets: list[NDArray[np.float64]] = field(default_factory=list)
    count_errors: int = 0
    false_positives: int = 0
    matched: int = 0
    images: int = 0

    def add(self, layout: Layout, detections: Detections) -> None:
        """Add one image: its labels, and the detections in it."""
        detections = detections.clip_to_image(layout.width, layout.height)
        self.images += 1
        self._add_truths(layout)
        self._add_results(detections)
        self._add_counts(layout, detections)
        self._add_verdict(layout, match_boxes(layout, detections, self.threshold))

    def _add_truths(self, layout: Layout) -> None:
        for box, name in zip(layout.boxes, layout.categories, strict=True):
            truth = {
                **convert_to_coco_box(box),
                "id": len(self.truths) + 1,
                "image_id": self.images,
                "category_id": self.ids[name],
                "iscrowd": 0,
            }
            self.truths.append(truth)

    def _add_results(self, detections: Detections) -> None:
        for i, name in enumerate(detections.categories):
            if name in self.ids:
                result = {
                    "image_id": self.images,
                    "category_id": self.ids[name],
                    "bbox": convert_to_coco_box(detections.boxes[i])["bbox"],
                    "score": float(detections.scores[i]),
                }
                self.found.append(result)

    def _add_counts(self, layout: Layout, detections: Detections) -> None:
        """Compare the numbers of labels and of confident detections in each category."""
        asked = Counter(layout.categories)
        detected: Counter[str] = Counter()
        for name, score in zip(detections.categories, detections.scores, strict=True):
            if score >= self.threshold:
                detected[name] += 1
        for name in self.ids:
            self.count_errors += abs(detected[name] - asked[name])

    def _add_verdict(self, layout: Layout, verdict: Verdict) -> None:
        assert verdict.ious is not None
        assert verdict.found is not None
        self.ious += verdict.ious.tolist()
        is_matched = verdict.ious >= MATCHED
        self.matched += int((is_matched & (verdict.scores >= self.threshold)).sum())
        self.false_positives += len(verdict.unasked)
        boxes = layout.boxes[is_matched]
        for box, detected in zip(boxes, verdict.found[is_matched], strict=True):
            sides = box_sides(box).astype(np.float64)
            # Not with box_centres, which rounds differently.
            shift = ((detected[:2] + detected[2:]) - (box[:2] + box[2:])) / 2 / sides
            self.offsets.append(np.concatenate([shift, box_sides(detected) / sides]))

    def figures(self) -> dict[str, float]:
        """Return the figures of all images.

        Returns:
            ap, ap50, ap75: COCO's, with the layout as the ground truth.
            iou: mean over boxes of the best IoU with a detection of the category, 0 if none.
            held: share of boxes with a confident detection of IoU >= 0.5.
            offset_x, offset_y: mean offset of the centres of the detections with IoU >= 0.5, in
                sides of the box.
            scale_x, scale_y: mean ratio of their sides to those of the box.
            count_error: sum of |found - asked| over the sum of asked.
            unasked: false positives per image.
        """
        boxes = max(1, len(self.truths))
        means = np.mean(self.offsets, 0) if self.offsets else np.full(len(OFFSETS), np.nan)
        figures = average_precision(self.truths, self.found, self.images, self.ids)
        figures["iou"] = float(np.mean(self.ious)) if self.ious else float("nan")
        figures["held"] = self.matched / boxes
        for name, value in zip(OFFSETS, means, strict=True):
            figures[name] = float(value)
        figures["count_error"] = self.count_errors / boxes
        figures["unasked"] = self.false_positives / max(1, self.images)
        return figures


def convert_to_coco_box(box: NDArray[np.float32]) -> dict[str, Any]:
    """Return `bbox` (xywh) and `area` of a box (4,) xyxy."""
    bbox = xyxy_to_xywh(box.astype(np.float64)).tolist()
    return {"bbox": bbox, "area": bbox[2] * bbox[3]}


def average_precision(
    truths: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
    images: int,
    ids: dict[str, int],
) -> dict[str, float]:
    """Return COCO's AP, AP50 and AP75, with all detections of an image counted.

    COCO's limit of 100 detections would cut the recall of images with more than 100 objects.

    Args:
        truths: COCO annotations.
        results: COCO results.
        images: number of images; their ids start at 1.
        ids: category name to id.
    """
    if not truths or not results:
        return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    with redirect_stdout(StringIO()):  # pycocotools prints its progress
        truth = COCO()
        truth.dataset = {
            "images": [{"id": image_id} for image_id in range(1, images + 1)],
            "annotations": list(truths),
            "categories": [Category(number, name).to_coco() for name, number in ids.items()],
            "info": {},
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(list(results)), "bbox")
        detections_per_image = Counter(result["image_id"] for result in results)
        limit = max(100, *detections_per_image.values())
        evaluation.params.maxDets = [1, 10, limit]
        evaluation.evaluate()
        evaluation.accumulate()
    # The axes are IoU, recall, category, area range and limit of detections.
    precision = evaluation.eval["precision"][..., 0, -1]
    return {
        "ap": _mean_of_known(precision),
        "ap50": _mean_of_known(precision[0]),
        "ap75": _mean_of_known(precision[5]),
    }


def _mean_of_known(precision: NDArray[np.float64]) -> float:
    """Return the mean without the places that COCO marks with -1 as not measured."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else float("nan")
