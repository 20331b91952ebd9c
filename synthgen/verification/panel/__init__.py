"""Several verifiers, all of which a box must convince: the recipe."""

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError

from synthgen import registry
from synthgen.layouts.base import Layout, SamplerSpec
from synthgen.verification.base import Share, Verdict, VerifierSpec


def _spec(value: Any) -> Any:
    """The spec that a mapping, or a name alone, stands for."""
    if isinstance(value, VerifierSpec):
        return value
    given = {"verifier": value} if isinstance(value, str) else value
    name = given.get("verifier") if isinstance(given, dict) else None
    if name not in registry.names("verifier") or name == "panel":
        have = ", ".join(n for n in registry.names("verifier") if n != "panel")
        raise ValueError(f"{name!r} is not a verifier; there are: {have}")
    try:
        return registry.spec_class("verifier", str(name)).model_validate(given)
    except ValidationError as error:
        said = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{name}: {'; '.join(said)}") from None


Member = Annotated[SerializeAsAny[VerifierSpec], BeforeValidator(_spec)]


class Spec(VerifierSpec):
    """Several verifiers: a box holds if it holds for each of them, and what one of them did not ask for nobody did.

    The score of a box is its worst one, each scaled so that 0.5 is what the verifier asks for at least. What happens to
    failures is the panel's business: `on_failure` and `max_repairs` of its members count for nothing.
    """

    IMPLEMENTATION: ClassVar[str] = "synthgen.verification.panel.verifier:Panel"

    verifier: Literal["panel"] = "panel"
    of: tuple[Member, ...] = Field(
        min_length=1, description="the verifiers, each with its threshold"
    )
    threshold: Share = Field(
        0.5, description="least score of a box that holds: 0.5 is what each member asks for"
    )

    def fails(self, verdict: Verdict, layout: Layout) -> NDArray[np.bool_]:
        failed = super().fails(verdict, layout)
        for member in self.of:
            if verdict.ious is not None and hasattr(member, "iou"):
                failed = failed | ~(verdict.ious >= member.iou)
        return failed

    def check(self, sampler: SamplerSpec) -> list[str]:
        return [
            f"of[{k}].{problem}"
            for k, member in enumerate(self.of)
            for problem in member.check(sampler)
        ]

    def fingerprint(self) -> dict[str, Any]:
        return {
            f"of[{k}].{key}": value
            for k, member in enumerate(self.of)
            for key, value in member.fingerprint().items()
        }
