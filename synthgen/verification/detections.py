"""Detections of an image, clipped and filtered for the rest of the program."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthgen.geometry import box_sides, clip_boxes

LEAST_SIDE = 1.0  # px; a detection with a shorter side inside the image is dropped


@dataclass(frozen=True)
class Detections:
    """The detections of one image.

    Attributes:
        boxes: (N, 4) float32, xyxy in px.
        scores: (N,) float32 in [0, 1], descending.
        categories: N names.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    categories: tuple[str, ...]

    def at_least(self, score: float) -> "Detections":
        """Return the detections with at least this score."""
        n = int((self.scores >= score).sum())
        return Detections(self.boxes[:n], self.scores[:n], self.categories[:n])

    def clip_to_image(self, width: int, height: int) -> "Detections":
        """Return detections that the rest of the program can use, whatever the detector returned.

        Boxes are clipped to the image of width x height px. Those that are not finite, have no
        finite score, or have a side under LEAST_SIDE inside the image are dropped. Scores lie in
        [0, 1] and descend.
        """
        finite = np.isfinite(self.boxes).all(1) & np.isfinite(self.scores)
        boxes = clip_boxes(np.nan_to_num(self.boxes), width, height).astype(np.float32)
        scores = np.nan_to_num(self.scores).clip(0, 1).astype(np.float32)
        large = (box_sides(boxes) >= LEAST_SIDE).all(1)
        order = np.argsort(-scores, kind="stable")
        kept = order[(finite & large)[order]]
        return Detections(boxes[kept], scores[kept], tuple(self.categories[i] for i in kept))
