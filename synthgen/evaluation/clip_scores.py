"""Pictures held against words, by CLIP."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthgen.layouts.base import Layout
from synthgen.verification.clip import Spec as ClipSpec
from synthgen.verification.clip.verifier import ClipVerifier
from synthgen.verification.crops import crops_of


class ClipScores:
    """Gathers how well pictures fit their prompts, and boxes their categories' names.

    clip_score: mean over images of 100 max(cos(image, prompt), 0) (Hessel et al., arXiv 2104.08718).
    t2i_sim: mean over boxes of cos(crop, "a photo of a {category}").
    """

    def __init__(self, spec: ClipSpec, device: str) -> None:
        self.clip = ClipVerifier(spec, device)
        self.scores: list[float] = []
        self.similar: list[float] = []

    def add(self, image: NDArray[np.uint8], prompt: str, layout: Layout) -> None:
        """One picture (H, W, 3)."""
        whole = self.clip.seen([Image.fromarray(image)]) @ self.clip.words([prompt]).T
        self.scores.append(100 * float(whole[0, 0].clamp(min=0)))  # what is no number stays none
        texts = [self.clip.spec.text.format(category=name, phrase="") for name in layout.categories]
        if texts:
            crops = crops_of([image], [layout], self.clip.spec.context)
            self.similar += (self.clip.seen(crops) * self.clip.words(texts)).sum(1).tolist()

    def figures(self) -> dict[str, float | None]:
        """clip_score and t2i_sim; None without boxes, or where CLIP gives anything that is no number."""
        told = {"clip_score": self.scores, "t2i_sim": self.similar}
        known = {
            name: values for name, values in told.items() if values and np.isfinite(values).all()
        }
        return {
            name: round(float(np.mean(known[name])), 4) if name in known else None for name in told
        }
