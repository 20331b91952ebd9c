"""The LoRA keys of training jobs."""

from pydantic import ConfigDict, Field

from synthgen.spec import SpecModel


class LoraSpec(SpecModel):
    """Low-rank changes of the weights instead of changes of all weights (arXiv 2106.09685)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(16, ge=1)
