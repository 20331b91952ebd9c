"""Boxes held against what a detector finds in the whole picture."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import pipeline

from synthgen.layouts import Layout
from synthgen.verify import Verdict
from synthgen.verify.centernet import CenterNet, Detections, iou
from synthgen.verify.verifiers.detector import Spec

APART = 0.3  # IoU with every box below which a detection may be an object that nobody asked for
PART = 0.5  # share of a detection inside one box from which it is a part of that box's object


LEAST_SCORE = 0.05  # of a detection that is looked at

Detect = Callable[[NDArray[np.uint8], Sequence[str]], Detections]
"""A picture (H, W, 3) and the names to look for to what is in it."""


class DetectorVerifier:
    """The loaded detector."""

    def __init__(self, spec: Spec, device: str) -> None:
        self.spec, self.names = spec, {label: name for name, label in spec.labels.items()}
        self.detect = load_detector(spec, device)

    def __call__(self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]) -> list[Verdict]:
        return [hold(of, self.found(image, of), self.spec.unasked) for image, of in zip(images, layouts, strict=True)]

    def found(self, image: NDArray[np.uint8], layout: Layout) -> Detections:
        """What is in a picture, in the layout's names."""
        labels = [self.spec.labels.get(name, name) for name in dict.fromkeys(layout.categories) if name]
        found = self.detect(image, labels)
        return replace(found, categories=tuple(self.names.get(label, label) for label in found.categories))


def load_detector(spec: Spec, device: str) -> Detect:
    """The project's own small detector, or one of transformers."""
    if "categories" in spec.config():
        own = CenterNet.from_pretrained(spec.folder(), dtype=torch.float32, use_safetensors=True).eval().to(device)
        own.to(memory_format=torch.channels_last)
        return lambda image, labels: own.detect(image)
    task = "zero-shot-object-detection" if spec.zero_shot else "object-detection"
    theirs: Any = pipeline(task, model=str(spec.folder()), device=device, model_kwargs={"use_safetensors": True})

    def detect(image: NDArray[np.uint8], labels: Sequence[str]) -> Detections:
        told = {"candidate_labels": list(labels)} if spec.zero_shot else {}
        if spec.zero_shot and not labels:
            return as_detections([])
        return as_detections(theirs(Image.fromarray(image), threshold=LEAST_SCORE, **told))

    return detect


def as_detections(found: Sequence[dict[str, Any]]) -> Detections:
    """What transformers' pipelines return, best first."""
    best = sorted(found, key=lambda f: -f["score"])
    boxes = np.array([[f["box"][k] for k in ("xmin", "ymin", "xmax", "ymax")] for f in best], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array([f["score"] for f in best], np.float32), tuple(f["label"] for f in best))


def hold(layout: Layout, found: Detections, unasked: float | None) -> Verdict:
    """Hold boxes and detections against each other.

    A box gets the detection of its category with the greatest IoU, and its score.
    """
    overlap = iou(layout.boxes, found.boxes) if len(found.boxes) else np.zeros((len(layout), 1))
    names = np.array(found.categories) if len(found.boxes) else np.array([""])
    same = overlap * (names[None] == np.array(layout.categories, dtype=object)[:, None])
    best = same.argmax(1) if len(layout) else np.zeros(0, int)
    ious = same[np.arange(len(layout)), best].astype(np.float32)
    there = ious > 0
    scores = np.where(there, found.scores[best] if len(found.boxes) else 0, 0).astype(np.float32)
    boxes = np.where(there[:, None], found.boxes[best], layout.boxes) if len(found.boxes) else layout.boxes
    return Verdict(scores, ious, boxes.astype(np.float32), stray(layout, found, unasked))


def stray(layout: Layout, found: Detections, unasked: float | None) -> NDArray[np.float32]:
    """Boxes (M, 4) of detections that no box of the layout accounts for, distractors' included."""
    if unasked is None or not len(found.boxes):
        return np.zeros((0, 4), np.float32)
    sure = found.at_least(unasked).boxes
    if not len(layout):
        return sure
    low = np.maximum(sure[:, None, :2], layout.boxes[None, :, :2])
    high = np.minimum(sure[:, None, 2:], layout.boxes[None, :, 2:])
    part = (high - low).clip(0).prod(2) / (sure[:, 2:] - sure[:, :2]).prod(1).clip(1e-6)[:, None]
    return sure[(iou(sure, layout.boxes).max(1) < APART) & (part.max(1) < PART)]
