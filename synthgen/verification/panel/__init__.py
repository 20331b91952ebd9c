"""The recipe of a panel of verifiers, whose verdicts are combined. It runs in `verifier.py`."""

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError

from synthgen import registry
from synthgen.layouts.base import Layout, SamplerSpec
from synthgen.verification.base import Share, Verdict, VerifierSpec


def _parse_member(value: Any) -> Any:
    """Return the recipe that a mapping, or a name alone, stands for."""
    if isinstance(value, VerifierSpec):
        return value
    mapping = {"verifier": value} if isinstance(value, str) else value
    name = mapping.get("verifier") if isinstance(mapping, dict) else None
    known = [known_name for known_name in registry.list_names("verifier") if known_name != "panel"]
    if name not in known:
        raise ValueError(f"{name!r} is not a verifier; there are: {', '.join(known)}")
    try:
        return registry.load_spec_class("verifier", str(name)).model_validate(mapping)
    except ValidationError as error:
        problems = []
        for detail in error.errors():
            key = ".".join(map(str, detail["loc"]))
            problems.append(f"{key}: {detail['msg']}")
        raise ValueError(f"{name}: {'; '.join(problems)}") from None


Member = Annotated[SerializeAsAny[VerifierSpec], BeforeValidator(_parse_member)]


class Spec(VerifierSpec):
    """Ask several verifiers: a box fails if it fails for one of them.

    The false positives of all of them are added. The score of a box is its lowest, each scaled so
    that 0.5 is the least score that the verifier accepts. The panel decides what happens to failed
    boxes: `on_failure` and `max_repairs` of its members have no effect.
    """

    IMPLEMENTATION: ClassVar[str] = "synthgen.verification.panel.verifier:Panel"

    verifier: Literal["panel"] = "panel"
    of: tuple[Member, ...] = Field(
        min_length=1, description="The verifiers, each with its threshold."
    )
    threshold: Share = Field(
        0.5,
        description="Least score of a box that does not fail; 0.5 is the least score that each "
        "member accepts.",
    )

    def find_failed_boxes(self, verdict: Verdict, layout: Layout) -> NDArray[np.bool_]:
        failed = super().find_failed_boxes(verdict, layout)
        for member in self.of:
            if verdict.ious is not None and hasattr(member, "iou"):
                failed = failed | ~(verdict.ious >= member.iou)
        return failed

    def check(self, sampler: SamplerSpec) -> list[str]:
        problems = []
        for k, member in enumerate(self.of):
            problems += [f"of[{k}].{problem}" for problem in member.check(sampler)]
        return problems

    def fingerprint(self) -> dict[str, Any]:
        hashes = {}
        for k, member in enumerate(self.of):
            for key, value in member.fingerprint().items():
                hashes[f"of[{k}].{key}"] = value
        return hashes
