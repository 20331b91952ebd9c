"""Boxes shown to a classifier one by one: the recipe."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.base import ModelNotFoundError
from synthgen.verification import efficientnet
from synthgen.verification.model_spec import ModelVerifierSpec

PACKAGED = efficientnet.NAME


class Spec(ModelVerifierSpec):
    """A classifier of pictures looks at each box with some context: the score is the probability of its category."""

    IMPLEMENTATION: ClassVar[str] = "synthgen.verification.classifier.verifier:ClassifierVerifier"

    verifier: Literal["classifier"] = "classifier"
    model: str = Field(
        PACKAGED,
        min_length=1,
        description="efficientnet-lite0, or a folder or Hub id of a transformers classifier",
    )
    context: float = Field(
        0.2, ge=0, le=2, description="share of the longer side round a box that is shown too"
    )
    labels: dict[str, str | tuple[str, ...]] = Field(
        default={},
        description="what the classifier calls a category, where it is not its name; of several the probabilities add up. "
        "For efficientnet-lite0 ImageNet's class numbers, such as 151-268; it knows dog and cat",
    )

    def folder(self) -> Path:
        if self.model != PACKAGED:
            return super().folder()
        if reason := efficientnet.missing():
            raise ModelNotFoundError(reason)
        return efficientnet.weights().parent

    def check(self, sampler: SamplerSpec) -> list[str]:
        problems = [] if self.model == PACKAGED else super().check(sampler)
        if problems:
            return problems
        try:
            known = self.known()
        except ModelNotFoundError as error:
            return [f"model: {error}"]
        except ValueError as error:
            return [f"labels: {error}: ImageNet's classes are 0-999, given as 151-268 or 281,285"]
        unknown = [name for name in sampler.names() if not self.classes(name, known)]
        return [
            f"labels: {self.model} has no label for {name}; say which one it is" for name in unknown
        ]

    def known(self) -> dict[str, list[int]]:
        """Class numbers of each name that the classifier knows, or that `labels` gives it in numbers.

        Raises:
            ModelNotFoundError: it cannot be had.
            ValueError: labels are no numbers of ImageNet's.
        """
        if self.model != PACKAGED:
            return {name: [int(i)] for i, name in self.config().get("id2label", {}).items()}
        self.folder()
        given = [
            text
            for value in self.labels.values()
            for text in ([value] if isinstance(value, str) else value)
        ]
        return {
            **{name: efficientnet.classes(text) for name, text in efficientnet.CLASSES.items()},
            **{text: efficientnet.classes(text) for text in given},
        }

    def classes(self, category: str, known: dict[str, list[int]]) -> list[int]:
        """Class numbers of a category; none if one of its labels is not known."""
        labels = self.labels.get(category, category)
        names = [labels] if isinstance(labels, str) else labels
        return (
            [i for name in names for i in known[name]]
            if all(name in known for name in names)
            else []
        )

    def fingerprint(self) -> dict[str, Any]:
        return (
            {"model_sha256": efficientnet.weights_hash()}
            if self.model == PACKAGED
            else super().fingerprint()
        )
