"""Boxes held against the words for them: the recipe."""

from typing import ClassVar, Literal

from pydantic import Field

from synthgen.verification.model_spec import ModelVerifierSpec


class Spec(ModelVerifierSpec):
    """CLIP looks at each box with some context: the score is the cosine of its picture and its text, at least 0."""

    IMPLEMENTATION: ClassVar[str] = "synthgen.verification.clip.verifier:ClipVerifier"

    verifier: Literal["clip"] = "clip"
    context: float = Field(
        0.1, ge=0, le=2, description="share of the longer side round a box that is shown too"
    )
    text: str = Field(
        "a photo of a {category}", description="of a box; {category} and {phrase} are replaced"
    )
