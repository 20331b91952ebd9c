"""The interface of verifiers.

A verifier checks whether each box of an image contains what its label says, and whether there are
false positives: objects without a label. Each folder beside this file is one verifier: it defines a
`Spec` whose `verifier` names it. `repair.py` decides what happens to failed boxes.
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
TIGHTEN = 0.3  # IoU with a label's box from which a detection is of its object and can replace it


@dataclass(frozen=True)
class Verdict:
    """The result of a verifier for one image.

    Attributes:
        scores: (N,) in [0, 1], how likely it is that a box contains what its label says.
        ious: (N,) IoU of each box with its detection, 0 without one; None if the verifier does
            not detect boxes.
        found: (N, 4) float32 xyxy in px, the detection of each box, or the box itself without one;
            None if the verifier does not detect boxes.
        unasked: (M, 4) float32 xyxy in px, boxes of false positives.
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
        """Return a verdict for each image (H, W, 3)."""


class VerifierSpec(SpecModel):
    """The recipe of a verifier, and what happens to failed boxes. Recipes do not import torch.

    Attributes:
        IMPLEMENTATION: import path of the verifier, a class that takes the recipe and a device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    IMPLEMENTATION: ClassVar[str]

    verifier: str
    threshold: Share | dict[str, Share] = Field(
        0.3,
        description="Least score of a box that does not fail; or a number for each category.",
    )
    on_failure: tuple[Action, ...] = Field(
        ("repair", "flag"),
        description="What happens to failed boxes; repair: generate their windows again; redo: "
        "generate the image again; tighten: move the label to the detection; flag: keep the label "
        "and record the failure.",
    )
    max_repairs: int = Field(
        2, ge=1, description="Number of times that the windows of an image are generated again."
    )

    def least(self, category: str) -> float:
        """Return the least score of a box of a category that does not fail."""
        if isinstance(self.threshold, dict):
            return self.threshold.get(category, 0.0)
        return self.threshold

    def find_failed_boxes(self, verdict: Verdict, layout: Layout) -> NDArray[np.bool_]:
        """Return which boxes (N,) fail. A box with a score of NaN fails, too."""
        least = np.array([self.least(name) for name in layout.categories], np.float32)
        return ~(verdict.scores >= least)

    def check(self, sampler: SamplerSpec) -> list[str]:
        """Return why these layouts cannot be verified, each reason as `key: reason`."""
        problems = []
        if isinstance(self.threshold, dict):
            for name in sampler.names():
                if name not in self.threshold:
                    problems.append(f"threshold: no number for {name!r}, which the layout has")
        return problems

    @property
    def revision(self) -> int:
        """Revision of how verdicts change labels; a change that no key expresses increases it."""
        # Revision 2 clips detections, tightens from an IoU of 0.3 on, and rejects worse repairs.
        return 2

    def fingerprint(self) -> dict[str, Any]:
        """Return what verdicts depend on beyond the recipe's own keys: hashes of model files."""
        return {}

    def load(self, device: str) -> Verifier:
        """Load the verifier on "cpu" or "cuda"."""
        verifier: Verifier = load_implementation(self.IMPLEMENTATION)(self, device)
        return verifier
