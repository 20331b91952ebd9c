"""The recipe of the verifier that compares boxes with text. It runs in `verifier.py`."""

from typing import ClassVar, Literal

from pydantic import Field

from synthgen.verification.model_spec import ModelVerifierSpec


class Spec(ModelVerifierSpec):
    """Score each box by the cosine similarity of its crop and its text under CLIP, at least 0."""

    IMPLEMENTATION: ClassVar[str] = "synthgen.verification.clip.verifier:ClipVerifier"

    verifier: Literal["clip"] = "clip"
    context: float = Field(
        0.1,
        ge=0,
        le=2,
        description="Share of a box's longer side that is added to its crop on each side.",
    )
    text: str = Field(
        "a photo of a {category}",
        description="Text for a box; {category} and {phrase} are replaced.",
    )
