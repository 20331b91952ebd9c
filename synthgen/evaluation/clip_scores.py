"""Similarity of images and text, measured with CLIP."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthgen.layouts.base import Layout
from synthgen.verification.clip import Spec as ClipSpec
from synthgen.verification.clip.verifier import ClipVerifier
from synthgen.verification.crops import crop_boxes


class ClipScores:
    """Collects how well images match their prompts, and boxes the names of their categories.

    clip_score: mean over images of 100 max(cos(image, prompt), 0) (Hessel et al., arXiv
        2104.08718).
    t2i_sim: mean over boxes of cos(crop, "a photo of a {category}").
    """

    def __init__(self, spec: ClipSpec, device: str) -> None:
        self.clip = ClipVerifier(spec, device)
        self.image_scores: list[float] = []
        self.box_similarities: list[float] = []

    def add(self, image: NDArray[np.uint8], prompt: str, layout: Layout) -> None:
        """Add one image (H, W, 3)."""
        image_features = self.clip.seen([Image.fromarray(image)])
        similarity = image_features @ self.clip.words([prompt]).T
        self.image_scores.append(100 * float(similarity[0, 0].clamp(min=0)))  # NaN stays NaN
        texts = [self.clip.spec.text.format(category=name, phrase="") for name in layout.categories]
        if texts:
            crops = crop_boxes([image], [layout], self.clip.spec.context)
            similarities = (self.clip.seen(crops) * self.clip.words(texts)).sum(1)
            self.box_similarities += similarities.tolist()

    def compute_figures(self) -> dict[str, float | None]:
        """Return clip_score and t2i_sim; None without boxes, or if a score is not finite."""
        return {
            "clip_score": _finite_mean(self.image_scores),
            "t2i_sim": _finite_mean(self.box_similarities),
        }


def _finite_mean(values: list[float]) -> float | None:
    if not values or not np.isfinite(values).all():
        return None
    return round(float(np.mean(values)), 4)
