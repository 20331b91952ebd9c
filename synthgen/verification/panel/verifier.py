"""Several verifiers that act as one."""

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
        specs = [spec for spec, _ in self.members]
        verdicts_per_member = [verifier(images, layouts) for _, verifier in self.members]
        verdicts = []
        for *own_verdicts, layout in zip(*verdicts_per_member, layouts, strict=True):
            verdicts.append(combine_verdicts(specs, own_verdicts, layout))
        return verdicts


def combine_verdicts(
    specs: Sequence[VerifierSpec], verdicts: Sequence[Verdict], layout: Layout
) -> Verdict:
    """Return the lowest score of each box, the detections, and the false positives of all."""
    scores = []
    for spec, verdict in zip(specs, verdicts, strict=True):
        scores.append(scale_scores(spec, verdict, layout))
    lowest = np.min(scores, 0).astype(np.float32)
    detected = verdicts[0]
    for verdict in verdicts:
        if verdict.ious is not None:
            detected = verdict
            break
    unasked = np.concatenate([verdict.unasked for verdict in verdicts])
    return Verdict(lowest, detected.ious, detected.found, unasked)


def scale_scores(spec: VerifierSpec, verdict: Verdict, layout: Layout) -> NDArray[np.float64]:
    """Return scores (N,) scaled so that the least score of a box that does not fail is 0.5.

    The scale is linear from 0 to that score, and from there to 1.
    """
    least = np.clip([spec.least(name) for name in layout.categories], 1e-6, 1 - 1e-6).reshape(-1)
    scores = verdict.scores.astype(np.float64)
    low = 0.5 * scores / least
    high = 0.5 + 0.5 * (scores - least) / (1 - least)
    return np.where(scores < least, low, high)
