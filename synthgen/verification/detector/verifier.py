"""Boxes held against what a detector finds in the whole picture."""

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

APART = TIGHTEN  # IoU with every box below which a detection may be an object that nobody asked for
PART = 0.5  # share of a detection inside one box from which it is a part of that box's object
LEAST_SCORE = 0.05  # of a detection that is looked at

AT_ONCE = 8  # pictures of one size

Detect = Callable[[Sequence[NDArray[np.uint8]], Sequence[Sequence[str]]], list[Detections]]
"""Pictures (H, W, 3) of one size, and the names to look for in each, to what is in them."""


class DetectorVerifier:
    """The loaded detector."""

    def __init__(self, spec: Spec, device: str) -> None:
        self.spec, self.names = spec, {label: name for name, label in spec.labels.items()}
        self.detect = load_detector(spec, device)

    def __call__(
        self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]
    ) -> list[Verdict]:
        called = [
            replace(
                of, categories=tuple(self.spec.labels.get(name, name) for name in of.categories)
            )
            for of in layouts
        ]
        found = self.seen(images, layouts)
        return [hold(of, seen, self.spec.unasked) for of, seen in zip(called, found, strict=True)]

    def found(
        self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]
    ) -> list[Detections]:
        """What is in each picture, in the layouts' names."""
        found = self.seen(images, layouts)
        return [
            replace(f, categories=tuple(self.names.get(label, label) for label in f.categories))
            for f in found
        ]

    def seen(
        self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]
    ) -> list[Detections]:
        """The same in the detector's words; runs of pictures of one size are looked at together.

        Here detections enter the program: whatever uses them gets them clipped and filtered.
        """
        found: list[Detections] = []
        pairs = zip(images, (self.labels(of) for of in layouts), strict=True)
        for _, run in groupby(pairs, key=lambda pair: pair[0].shape):
            same = list(run)
            for k in range(0, len(same), AT_ONCE):
                pictures, labels = zip(*same[k : k + AT_ONCE], strict=True)
                height, width = pictures[0].shape[:2]
                found += [raw.inside(width, height) for raw in self.detect(pictures, labels)]
        return found

    def labels(self, layout: Layout) -> list[str]:
        """What the detector calls a layout's categories."""
        return list(
            dict.fromkeys(self.spec.labels.get(name, name) for name in layout.categories if name)
        )


def load_detector(spec: Spec, device: str, least: float | None = None) -> Detect:
    """The project's own small detector, or one of transformers.

    Args:
        least: score from which detections are looked at; None: all of the small one's, LEAST_SCORE for those of transformers.
    """
    if "categories" in spec.config():
        own = (
            CenterNet.from_pretrained(spec.folder(), dtype=torch.float32, use_safetensors=True)
            .eval()
            .to(device)
        )
        own.to(memory_format=torch.channels_last)
        return lambda images, labels: own.detect_all(images, least=least or 0.0)
    floor = LEAST_SCORE if least is None else least
    task = "zero-shot-object-detection" if spec.zero_shot else "object-detection"
    safe: dict[str, Any] = {"trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
    theirs: Any = pipeline(task, model=str(spec.folder()), device=device, **safe)

    def told(
        images: Sequence[NDArray[np.uint8]], labels: Sequence[Sequence[str]]
    ) -> list[Detections]:
        """Each label is a pass of its own there."""
        pairs = zip(images, labels, strict=True)
        asked = [
            theirs(Image.fromarray(i), candidate_labels=list(of), threshold=floor) if of else []
            for i, of in pairs
        ]
        return [as_detections(f) for f in asked]

    return told if spec.zero_shot else lambda images, labels: detect_with(theirs, images, floor)


def detect_with(
    theirs: Any, images: Sequence[NDArray[np.uint8]], least: float = LEAST_SCORE
) -> list[Detections]:
    """What transformers' object-detection pipeline finds in pictures (H, W, 3)."""
    pictures = [Image.fromarray(image) for image in images]
    return [as_detections(f) for f in theirs(pictures, threshold=least, batch_size=AT_ONCE)]


def as_detections(found: Sequence[dict[str, Any]]) -> Detections:
    """What transformers' pipelines return, best first."""
    best = sorted(found, key=lambda f: -f["score"])
    boxes = np.array(
        [[f["box"][k] for k in ("xmin", "ymin", "xmax", "ymax")] for f in best], np.float32
    ).reshape(-1, 4)
    return Detections(
        boxes, np.array([f["score"] for f in best], np.float32), tuple(f["label"] for f in best)
    )


def hold(layout: Layout, found: Detections, unasked: float | None) -> Verdict:
    """Hold boxes and detections against each other.

    A box gets the detection of its category with the greatest IoU, and its score.
    """
    overlap = box_iou(layout.boxes, found.boxes) if len(found.boxes) else np.zeros((len(layout), 1))
    names = np.array(found.categories) if len(found.boxes) else np.array([""])
    same = overlap * (names[None] == np.array(layout.categories, dtype=object)[:, None])
    best = same.argmax(1) if len(layout) else np.zeros(0, int)
    ious = same[np.arange(len(layout)), best].astype(np.float32)
    there = ious > 0
    scores = np.where(there, found.scores[best] if len(found.boxes) else 0, 0).astype(np.float32)
    boxes = (
        np.where(there[:, None], found.boxes[best], layout.boxes)
        if len(found.boxes)
        else layout.boxes
    )
    return Verdict(scores, ious, boxes.astype(np.float32), stray(layout, found, unasked))


def stray(layout: Layout, found: Detections, unasked: float | None) -> NDArray[np.float32]:
    """Boxes (M, 4) of detections that no box of the layout accounts for, distractors' included."""
    if unasked is None or not len(found.boxes):
        return np.zeros((0, 4), np.float32)
    sure = found.at_least(unasked).boxes
    if not len(layout):
        return sure
    part = box_intersections(sure, layout.boxes) / box_areas(sure).clip(1e-6)[:, None]
    return sure[(box_iou(sure, layout.boxes).max(1) < APART) & (part.max(1) < PART)]
