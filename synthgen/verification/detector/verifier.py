"""The verifier that compares boxes with the detections in the whole image."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import pipeline

from synthgen.geometry import box_areas, box_intersections, box_iou
from synthgen.layouts.base import Layout
from synthgen.verification.base import TIGHTEN, Verdict
from synthgen.verification.centernet import CenterNet
from synthgen.verification.detections import Detections
from synthgen.verification.detector import Spec

APART = TIGHTEN  # IoU with every box below which a detection can be a false positive
PART = 0.5  # share of a detection inside one box from which it is a part of that box's object
LEAST_SCORE = 0.05  # detections with a lower score are dropped
BATCH_SIZE = 8  # images of one size

Detect = Callable[[Sequence[NDArray[np.uint8]], Sequence[Sequence[str]]], list[Detections]]
"""Images (H, W, 3) of one size, and the labels to look for in each, to the detections of each."""


class DetectorVerifier:
    """The loaded detector."""

    def __init__(self, spec: Spec, device: str) -> None:
        self.spec = spec
        self.names = {label: name for name, label in spec.labels.items()}
        self.detect = load_detector(spec, device)

    def __call__(
        self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]
    ) -> list[Verdict]:
        verdicts = []
        for layout, detections in zip(layouts, self.detect_labels(images, layouts), strict=True):
            labels = tuple(self.spec.labels.get(name, name) for name in layout.categories)
            labelled = replace(layout, categories=labels)
            verdicts.append(match_boxes(labelled, detections, self.spec.unasked))
        return verdicts

    def found(
        self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]
    ) -> list[Detections]:
        """Return the detections of each image, with the names of the layouts' categories."""
        renamed = []
        for detections in self.detect_labels(images, layouts):
            names = tuple(self.names.get(label, label) for label in detections.categories)
            renamed.append(replace(detections, categories=names))
        return renamed

    def detect_labels(
        self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]
    ) -> list[Detections]:
        """Return the detections of each image, with the detector's labels, clipped and filtered.

        Consecutive images of one size are processed in batches.
        """
        all_detections: list[Detections] = []
        labels = [self.list_labels(layout) for layout in layouts]
        pairs = zip(images, labels, strict=True)
        for _, same_size in groupby(pairs, key=lambda pair: pair[0].shape):
            remaining = list(same_size)
            for k in range(0, len(remaining), BATCH_SIZE):
                batch, batch_labels = zip(*remaining[k : k + BATCH_SIZE], strict=True)
                height, width = batch[0].shape[:2]
                for detections in self.detect(batch, batch_labels):
                    all_detections.append(detections.clip_to_image(width, height))
        return all_detections

    def list_labels(self, layout: Layout) -> list[str]:
        """Return the detector's labels for a layout's categories, each once."""
        labels = [self.spec.labels.get(name, name) for name in layout.categories if name]
        return list(dict.fromkeys(labels))


def load_detector(spec: Spec, device: str, least: float = LEAST_SCORE) -> Detect:
    """Load the project's own small detector, or one of transformers.

    Args:
        spec: the recipe.
        device: "cpu" or "cuda".
        least: score below which detections are dropped.
    """
    if "categories" in spec.config():
        return _load_centernet(spec, device, least)
    return _load_transformers(spec, device, least)


def _load_centernet(spec: Spec, device: str, least: float) -> Detect:
    """Load the project's own small detector, which always looks for all of its categories."""
    net = CenterNet.from_pretrained(spec.folder(), dtype=torch.float32, use_safetensors=True)
    net = net.eval().to(device).to(memory_format=torch.channels_last)

    def detect(
        images: Sequence[NDArray[np.uint8]], labels: Sequence[Sequence[str]]
    ) -> list[Detections]:
        return net.detect_all(images, least=least)

    return detect


def _load_transformers(spec: Spec, device: str, least: float) -> Detect:
    """Load a detector of transformers."""
    detector: Any = pipeline(
        "zero-shot-object-detection" if spec.zero_shot else "object-detection",
        model=str(spec.folder()),
        device=device,
        trust_remote_code=False,
        model_kwargs={"use_safetensors": True},
    )

    def detect(
        images: Sequence[NDArray[np.uint8]], labels: Sequence[Sequence[str]]
    ) -> list[Detections]:
        return detect_with(detector, images, least)

    def detect_zero_shot(
        images: Sequence[NDArray[np.uint8]], labels: Sequence[Sequence[str]]
    ) -> list[Detections]:
        # The pipeline makes one pass for each label.
        all_detections = []
        for image, own_labels in zip(images, labels, strict=True):
            results = []
            if own_labels:
                results = detector(
                    Image.fromarray(image), candidate_labels=list(own_labels), threshold=least
                )
            all_detections.append(convert_results(results))
        return all_detections

    return detect_zero_shot if spec.zero_shot else detect


def detect_with(
    detector: Any, images: Sequence[NDArray[np.uint8]], least: float = LEAST_SCORE
) -> list[Detections]:
    """Return the detections in images (H, W, 3) of an object-detection pipeline of transformers."""
    pictures = [Image.fromarray(image) for image in images]
    results = detector(pictures, threshold=least, batch_size=BATCH_SIZE)
    return [convert_results(result) for result in results]


def convert_results(results: Sequence[dict[str, Any]]) -> Detections:
    """Return the results of a pipeline of transformers as detections, by descending score."""
    ordered = sorted(results, key=lambda result: -result["score"])
    boxes = []
    for result in ordered:
        box = result["box"]
        boxes.append((box["xmin"], box["ymin"], box["xmax"], box["ymax"]))
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([result["score"] for result in ordered], np.float32),
        tuple(result["label"] for result in ordered),
    )


def match_boxes(layout: Layout, found: Detections, unasked: float | None) -> Verdict:
    """Compare the boxes of a layout with detections.

    A box gets the detection of its category with the greatest IoU, and its score.

    Args:
        layout: the boxes.
        found: the detections, with the layout's names.
        unasked: score from which a detection without a box is a false positive; None: none is.
    """
    false_positives = find_false_positives(layout, found, unasked)
    if not len(found.boxes):
        zeros = np.zeros(len(layout), np.float32)
        boxes = layout.boxes.astype(np.float32)
        return Verdict(zeros, zeros.copy(), boxes, false_positives)
    names = np.array(layout.categories, dtype=object)
    is_same_category = np.array(found.categories)[None] == names[:, None]
    overlap = box_iou(layout.boxes, found.boxes) * is_same_category
    best = overlap.argmax(1) if len(layout) else np.zeros(0, int)
    ious = overlap[np.arange(len(layout)), best].astype(np.float32)
    is_detected = ious > 0
    scores = np.where(is_detected, found.scores[best], 0).astype(np.float32)
    boxes = np.where(is_detected[:, None], found.boxes[best], layout.boxes).astype(np.float32)
    return Verdict(scores, ious, boxes, false_positives)


def find_false_positives(
    layout: Layout, found: Detections, unasked: float | None
) -> NDArray[np.float32]:
    """Return the boxes (M, 4) of detections that belong to no box of the layout.

    Boxes of distractors count as boxes of the layout.
    """
    if unasked is None or not len(found.boxes):
        return np.zeros((0, 4), np.float32)
    boxes = found.at_least(unasked).boxes
    if not len(layout):
        return boxes
    shares = box_intersections(boxes, layout.boxes) / box_areas(boxes).clip(1e-6)[:, None]
    is_apart = box_iou(boxes, layout.boxes).max(1) < APART
    is_no_part = shares.max(1) < PART
    return boxes[is_apart & is_no_part]
