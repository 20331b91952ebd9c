"""Boxes held against the words for them: the recipe."""

from typing import Literal

from pydantic import Field

from synthgen.verify import Verifier
from synthgen.verify.models import ModelVerifierSpec


class Spec(ModelVerifierSpec):
    """CLIP looks at each box with some context: the score is the cosine of its picture and its text, at least 0."""

    verifier: Literal["clip"] = "clip"
    context: float = Field(0.1, ge=0, le=2, description="share of the longer side round a box that is shown too")
    text: str = Field("a photo of a {category}", description="of a box; {category} and {phrase} are replaced")

    def load(self, device: str) -> Verifier:
        from synthgen.verify.crops import ClipVerifier

        return ClipVerifier(self, device)
