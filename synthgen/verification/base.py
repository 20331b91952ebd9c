"""Looking at pictures again: does each box hold what its label says, and is there anything nobody asked for?

Each folder beside this file is one way to look: a `Spec` whose `verifier` names it. `repair.py` says what happens to failures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from synthgen.layouts.base import Layout, SamplerSpec
from synthgen.spec import SpecModel, load_implementation

Share = Annotated[float, Field(ge=0, le=1)]
Action = Literal["repair", "redo", "tighten", "flag"]
TIGHTEN = 0.3  # IoU with the asked box from which a detection is of its object: it may take the box's place


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one picture.

    Attributes:
        scores: (N,) in [0, 1], how sure it is that a box holds what its label says.
        ious: (N,) IoU of each box with what was found for it, 0 if nothing; None if the verifier does not find boxes.
        found: (N, 4) float32 xyxy in px, what was found for each box (the box itself if nothing); None likewise.
        unasked: (M, 4) float32 xyxy in px, objects that nobody asked for.
    """

    scores: NDArray[np.float32]
    ious: NDArray[np.float32] | None
    found: NDArray[np.float32] | None
    unasked: NDArray[np.float32]


class Verifier(Protocol):
    """A loaded verifier."""

    def __call__(
        self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]
    ) -> list[Verdict]:
        """A verdict for each picture (H, W, 3)."""


class VerifierSpec(SpecModel):
    """How pictures are looked at, and what happens to those that fail; specs import no torch.

    Attributes:
        IMPLEMENTATION: import path of the verifier, a class that takes the spec and a device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    IMPLEMENTATION: ClassVar[str]

    verifier: str
    threshold: Share | dict[str, Share] = Field(
        0.3, description="least score of a box that holds; or a number a category"
    )
    on_failure: tuple[Action, ...] = Field(
        ("repair", "flag"),
        description="repair: paint its window again; redo: the image; tighten: the label moves to what was found; flag: keep it",
    )
    max_repairs: int = Field(
        2, ge=1, description="times that the windows of an image are painted again"
    )

    def least(self, category: str) -> float:
        """The least score of a box of a category that holds."""
        return (
            self.threshold.get(category, 0.0)
            if isinstance(self.threshold, dict)
            else self.threshold
        )

    def fails(self, verdict: Verdict, layout: Layout) -> NDArray[np.bool_]:
        """Which boxes (N,) do not hold."""
        least = np.array([self.least(name) for name in layout.categories], np.float32)
        return ~(verdict.scores >= least)  # a score that is no number is not enough either

    def check(self, sampler: SamplerSpec) -> list[str]:
        """What stands against looking at these layouts, each as `key: reason`."""
        if not isinstance(self.threshold, dict):
            return []
        return [
            f"threshold: no number for {n!r}, which the layout has"
            for n in sampler.names()
            if n not in self.threshold
        ]

    @property
    def revision(self) -> int:
        """The number of how verdicts become labels; a change that has no key raises it."""
        return 2  # since detections are clipped, `tighten` takes an IoU of 0.3, and a worse repair is not kept

    def fingerprint(self) -> dict[str, Any]:
        """What verdicts depend on, beyond the recipe's own keys: hashes of model files."""
        return {}

    def load(self, device: str) -> Verifier:
        """Load what is needed to look at pictures, on "cpu" or "cuda"."""
        verifier: Verifier = load_implementation(self.IMPLEMENTATION)(self, device)
        return verifier
