"""Boxes shown to a classifier one by one: the recipe."""

from typing import Literal

from pydantic import Field

from synthgen.layouts import SamplerSpec
from synthgen.verify import Verifier
from synthgen.verify.models import ModelVerifierSpec


class Spec(ModelVerifierSpec):
    """A classifier of pictures looks at each box with some context: the score is the probability of its category."""

    verifier: Literal["classifier"] = "classifier"
    context: float = Field(0.2, ge=0, le=2, description="share of the longer side round a box that is shown too")
    labels: dict[str, str] = Field(default={}, description="what the classifier calls a category, where it is not its name")

    def check(self, sampler: SamplerSpec) -> list[str]:
        problems = super().check(sampler)
        if problems:
            return problems
        known = set(self.config().get("id2label", {}).values())
        unknown = [name for name in sampler.names() if self.labels.get(name, name) not in known]
        return [f"labels: {self.model} has no label for {name}; say which one it is" for name in unknown]

    def load(self, device: str) -> Verifier:
        from synthgen.verify.crops import ClassifierVerifier

        return ClassifierVerifier(self, device)
