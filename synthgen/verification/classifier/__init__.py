"""The recipe of the verifier that classifies one box at a time. It runs in `verifier.py`."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.base import ModelNotFoundError
from synthgen.verification import efficientnet
from synthgen.verification.model_spec import ModelVerifierSpec

PACKAGED = efficientnet.NAME


class Spec(ModelVerifierSpec):
    """Score each box by the probability that a classifier gives its category, with some context."""

    IMPLEMENTATION: ClassVar[str] = "synthgen.verification.classifier.verifier:ClassifierVerifier"

    verifier: Literal["classifier"] = "classifier"
    model: str = Field(
        PACKAGED,
        min_length=1,
        description="Embedded model efficientnet-lite0, or a folder or Hub id of a classifier of "
        "transformers.",
    )
    context: float = Field(
        0.2,
        ge=0,
        le=2,
        description="Share of a box's longer side that is added to its crop on each side.",
    )
    labels: dict[str, str | tuple[str, ...]] = Field(
        default={},
        description="The classifier's labels for categories that it names differently; the "
        "probabilities of several labels are added. For efficientnet-lite0 these are ImageNet's "
        "class numbers, such as 151-268; it knows dog and cat.",
    )

    def folder(self) -> Path:
        if self.model != PACKAGED:
            return super().folder()
        reason = efficientnet.explain_missing()
        if reason:
            raise ModelNotFoundError(reason)
        return efficientnet.find_weights().parent

    def check(self, sampler: SamplerSpec) -> list[str]:
        if self.model != PACKAGED:
            problems = super().check(sampler)
            if problems:
                return problems
        try:
            class_numbers = self.read_class_numbers()
        except ModelNotFoundError as error:
            return [f"model: {error}"]
        except ValueError as error:
            return [f"labels: {error}: ImageNet's classes are 0-999, given as 151-268 or 281,285"]
        problems = []
        for name in sampler.names():
            if not self.find_classes(name, class_numbers):
                problems.append(
                    f"labels: {self.model} has no label for {name}; say which one it is"
                )
        return problems

    def read_class_numbers(self) -> dict[str, list[int]]:
        """Return the class numbers of each label that the classifier knows.

        For efficientnet-lite0 the texts in `labels` are added, because they are class numbers.

        Raises:
            ModelNotFoundError: the model cannot be found or fetched.
            ValueError: a label is not a class number of ImageNet.
        """
        numbers: dict[str, list[int]] = {}
        if self.model != PACKAGED:
            for i, name in self.config().get("id2label", {}).items():
                numbers[name] = [int(i)]
            return numbers
        self.folder()  # raises if the packages are not installed
        for name, text in efficientnet.CLASSES.items():
            numbers[name] = efficientnet.parse_classes(text)
        for category in self.labels:
            for text in self.find_labels(category):
                numbers[text] = efficientnet.parse_classes(text)
        return numbers

    def find_labels(self, category: str) -> tuple[str, ...]:
        """Return the classifier's labels for a category."""
        labels = self.labels.get(category, category)
        return (labels,) if isinstance(labels, str) else labels

    def find_classes(self, category: str, class_numbers: dict[str, list[int]]) -> list[int]:
        """Return the class numbers of a category; none if one of its labels is not known."""
        numbers: list[int] = []
        for label in self.find_labels(category):
            if label not in class_numbers:
                return []
            numbers += class_numbers[label]
        return numbers

    def fingerprint(self) -> dict[str, Any]:
        if self.model == PACKAGED:
            return {"model_sha256": efficientnet.hash_weights()}
        return super().fingerprint()
