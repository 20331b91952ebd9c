"""The recipe of the verifier that compares boxes with detections. It runs in `verifier.py`."""

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from synthgen.layouts.base import Layout, SamplerSpec
from synthgen.verification.base import Share, Verdict
from synthgen.verification.model_spec import ModelVerifierSpec

MOST_NAMES = 20  # number of a detector's names that a message lists


class Spec(ModelVerifierSpec):
    """Run a detector on the whole image: each box needs a detection of its category.

    A detection without a box is a false positive.
    """

    IMPLEMENTATION: ClassVar[str] = "synthgen.verification.detector.verifier:DetectorVerifier"

    verifier: Literal["detector"] = "detector"
    model: str = Field(
        "centernet-tiny",
        min_length=1,
        description="Embedded model, or a folder or Hub id of a detector of transformers.",
    )
    zero_shot: bool = Field(
        False,
        description="Whether the detector reads the names of objects as text (OWLv2, Grounding "
        "DINO).",
    )
    labels: dict[str, str] = Field(
        default={},
        description="The detector's labels for categories that it names differently.",
    )
    iou: Share = Field(0.5, description="Least IoU of a box with its detection.")
    unasked: Share | None = Field(
        0.5,
        description="Score from which a detection without a box is a false positive; null: none "
        "is.",
    )

    @property
    def revision(self) -> int:
        # The next one ignores detections with a score below 0.05, which could take a box from a
        # better detection.
        return super().revision + 1

    def find_failed_boxes(self, verdict: Verdict, layout: Layout) -> NDArray[np.bool_]:
        assert verdict.ious is not None
        failed: NDArray[np.bool_] = super().find_failed_boxes(verdict, layout) | ~(
            verdict.ious >= self.iou
        )
        return failed

    def check(self, sampler: SamplerSpec) -> list[str]:
        problems = super().check(sampler)
        if problems or self.zero_shot:
            return problems
        known = self.known()
        unknown = [name for name in sampler.names() if self.labels.get(name, name) not in known]
        if unknown:
            listed = ", ".join(known[:MOST_NAMES])
            if len(known) > MOST_NAMES:
                listed += ", …"
            problems.append(
                f"model: {self.model} does not know {', '.join(unknown)}; it knows {listed}; "
                "see labels"
            )
        return problems

    def known(self) -> list[str]:
        """Return the labels that the detector knows."""
        config = self.config()
        return list(config.get("categories") or config.get("id2label", {}).values())
