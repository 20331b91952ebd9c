"""Boxes held against what the small detector finds in the whole picture."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.layouts import Layout
from synthgen.verify import Verdict
from synthgen.verify.centernet import CenterNet, Detections, iou
from synthgen.verify.verifiers.detector import Spec

APART = 0.3  # IoU with every box below which a detection may be an object that nobody asked for
PART = 0.5  # share of a detection inside one box from which it is a part of that box's object


class DetectorVerifier:
    """The loaded detector."""

    def __init__(self, spec: Spec, device: str) -> None:
        self.spec = spec
        self.detector = CenterNet.from_pretrained(spec.folder(), dtype=torch.float32, use_safetensors=True).eval().to(device)
        self.detector.to(memory_format=torch.channels_last)

    def __call__(self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]) -> list[Verdict]:
        found = (self.detector.detect(image) for image in images)
        return [hold(layout, detections, self.spec.unasked) for layout, detections in zip(layouts, found, strict=True)]


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
