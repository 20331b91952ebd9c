"""Several verifiers as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from synthgen.layouts.base import Layout
from synthgen.verification.base import Verdict, VerifierSpec

if TYPE_CHECKING:
    from synthgen.verification.panel import Spec


class Panel:
    """The loaded verifiers."""

    def __init__(self, spec: Spec, device: str) -> None:
        self.members = [(member, member.load(device)) for member in spec.of]

    def __call__(
        self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]
    ) -> list[Verdict]:
        each = [verifier(images, layouts) for _, verifier in self.members]
        specs = [spec for spec, _ in self.members]
        return [
            joined(specs, verdicts, layout)
            for *verdicts, layout in zip(*each, layouts, strict=True)
        ]


def joined(specs: Sequence[VerifierSpec], verdicts: Sequence[Verdict], layout: Layout) -> Verdict:
    """The worst score of each box; what was found, and what nobody asked for, by those that look for it."""
    scores = np.min(
        [scaled(spec, v, layout) for spec, v in zip(specs, verdicts, strict=True)], 0
    ).astype(np.float32)
    finder = next((v for v in verdicts if v.ious is not None), verdicts[0])
    return Verdict(scores, finder.ious, finder.found, np.concatenate([v.unasked for v in verdicts]))


def scaled(spec: VerifierSpec, verdict: Verdict, layout: Layout) -> NDArray[np.float64]:
    """Scores (N,) with the least that hold at 0.5: linear from 0 to there, and from there to 1."""
    least = np.clip([spec.least(name) for name in layout.categories], 1e-6, 1 - 1e-6).reshape(-1)
    scores = verdict.scores.astype(np.float64)
    low, high = 0.5 * scores / least, 0.5 + 0.5 * (scores - least) / (1 - least)
    return np.where(scores < least, low, high)
