"""Boxes held against what a detector finds: the recipe."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from synthgen.diffusion.models import EMBEDDED, read_config
from synthgen.layouts import Layout, SamplerSpec
from synthgen.verify import Share, Verdict, Verifier, VerifierSpec


class Spec(VerifierSpec):
    """A detector looks at the whole picture: every box needs a detection of its category, every detection a box."""

    verifier: Literal["detector"] = "detector"
    model: str = Field("centernet-tiny", min_length=1, description="embedded detector, or the folder of one (`task: detector`)")
    iou: Share = Field(0.5, description="least IoU of a box with its detection")
    unasked: Share | None = Field(0.5, description="score from which a detection without a box counts; null: they do not")

    def folder(self) -> Path:
        """Where the detector is."""
        return EMBEDDED / self.model if (EMBEDDED / self.model / "config.json").is_file() else Path(self.model)

    def fails(self, verdict: Verdict, layout: Layout) -> NDArray[np.bool_]:
        assert verdict.ious is not None
        failed: NDArray[np.bool_] = super().fails(verdict, layout) | (verdict.ious < self.iou)
        return failed

    def check(self, sampler: SamplerSpec) -> list[str]:
        problems = super().check(sampler)
        if not (self.folder() / "config.json").is_file():
            have = ", ".join(sorted(p.name for p in EMBEDDED.iterdir() if (p / "config.json").is_file()))
            return [*problems, f"model: {self.model!r}: no folder of that name holds a config.json; embedded: {have}"]
        known = read_config(self.folder(), "")["categories"]
        unknown = [name for name in sampler.names() if name not in known]
        if unknown:
            problems.append(f"model: {self.model} does not know {', '.join(unknown)}; it knows {', '.join(known)}")
        return problems

    def fingerprint(self) -> dict[str, Any]:
        weights = (self.folder() / "diffusion_pytorch_model.safetensors").read_bytes()
        return {"model_sha256": hashlib.sha256(weights).hexdigest()}

    def load(self, device: str) -> Verifier:
        from synthgen.verify.detector import DetectorVerifier

        return DetectorVerifier(self, device)
