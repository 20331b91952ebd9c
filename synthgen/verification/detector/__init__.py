"""Boxes held against what a detector finds: the recipe."""

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from synthgen.layouts.base import Layout, SamplerSpec
from synthgen.verification.base import Share, Verdict
from synthgen.verification.model_spec import ModelVerifierSpec


class Spec(ModelVerifierSpec):
    """A detector looks at the whole picture: every box needs a detection of its category, every detection a box."""

    IMPLEMENTATION: ClassVar[str] = "synthgen.verification.detector.verifier:DetectorVerifier"

    verifier: Literal["detector"] = "detector"
    model: str = Field(
        "centernet-tiny",
        min_length=1,
        description="embedded; or a folder or Hub id of a transformers detector",
    )
    zero_shot: bool = Field(
        False, description="it is told what to look for in words (OWLv2, Grounding DINO)"
    )
    labels: dict[str, str] = Field(
        default={}, description="what the detector calls a category, where it is not its name"
    )
    iou: Share = Field(0.5, description="least IoU of a box with its detection")
    unasked: Share | None = Field(
        0.5, description="score from which a detection without a box counts; null: they do not"
    )

    def fails(self, verdict: Verdict, layout: Layout) -> NDArray[np.bool_]:
        assert verdict.ious is not None
        failed: NDArray[np.bool_] = super().fails(verdict, layout) | ~(verdict.ious >= self.iou)
        return failed

    def check(self, sampler: SamplerSpec) -> list[str]:
        problems = super().check(sampler)
        if problems or self.zero_shot:
            return problems
        known = self.known()
        unknown = [name for name in sampler.names() if self.labels.get(name, name) not in known]
        if unknown:
            have = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
            problems.append(
                f"model: {self.model} does not know {', '.join(unknown)}; it knows {have}; see labels"
            )
        return problems

    def known(self) -> list[str]:
        """The names that the detector knows."""
        config = self.config()
        return list(config.get("categories") or config.get("id2label", {}).values())
