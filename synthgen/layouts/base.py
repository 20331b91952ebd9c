"""The `Layout` type and the interface of samplers (numpy only).

Every other module of this folder that defines a `Spec` is a sampler, named by the spec's `sampler`.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field

from synthgen.annotations import build_default_phrase
from synthgen.errors import InputError
from synthgen.geometry import box_areas
from synthgen.spec import SpecModel

Boxes = NDArray[np.float32]
MIN_SHARE_INSIDE = 0.5
"""The least share of a box's area that a window or crop must contain for the box to count there."""
PER_BOX_FIELDS = (
    "boxes",
    "categories",
    "phrases",
    "attributes",
    "masks",
    "depth",
    "occluded",
    "labelled",
)
"""The fields of a layout that have a value for each box."""


@dataclass(frozen=True)
class Layout:
    """The boxes of one image, before the image is generated.

    Attributes:
        width, height: the size of the canvas in px.
        boxes: (N, 4) float32, xyxy in px, inside the canvas.
        categories: N category names, as in the recipe's `objects`.
        phrases: N prompts, one for each box ("a brown dog"); None until the scene is sampled.
        attributes: N free mappings that are stored with the annotations; None if there are none.
        masks: N COCO run-length encodings ({"size", "counts"}); None if unknown.
        depth: (N,) distances that order the boxes, larger is farther; None means any order.
        occluded: (N,) hidden fractions in [0, 1]; None means that all boxes are visible.
        labelled: (N,) whether each box is annotated; None means all are. Boxes without a label are
            distractors: they are generated but not annotated.
        caption: the prompt of the whole image, if the layout's source has one; it replaces the
            scene's.

    Examples:
        >>> layout = Layout(64, 64, np.array([[8, 8, 40, 56]], np.float32), ("dog",))
        >>> layout.prompts
        ('a dog',)
    """

    width: int
    height: int
    boxes: Boxes
    categories: tuple[str, ...]
    phrases: tuple[str, ...] | None = None
    attributes: tuple[dict[str, Any], ...] | None = None
    masks: tuple[dict[str, Any], ...] | None = None
    depth: NDArray[np.float32] | None = None
    occluded: NDArray[np.float32] | None = None
    labelled: NDArray[np.bool_] | None = None
    caption: str | None = None

    def __post_init__(self) -> None:
        if self.boxes.shape != (len(self.categories), 4):
            raise ValueError(
                f"boxes {self.boxes.shape} do not match {len(self.categories)} categories"
            )

    def __len__(self) -> int:
        return len(self.categories)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each box: its phrase, or the default one of its category."""
        return self.phrases or tuple(build_default_phrase(name) for name in self.categories)

    def with_phrases(self, phrases: tuple[str, ...]) -> "Layout":
        """Return the same layout with one phrase for each box."""
        return replace(self, phrases=phrases)

    def select(self, indices: Sequence[int]) -> "Layout":
        """Return the layout of some of the boxes, in the order of the indices."""
        selected: dict[str, Any] = {}
        for name in PER_BOX_FIELDS:
            values = getattr(self, name)
            if isinstance(values, np.ndarray):
                selected[name] = values[list(indices)]
            elif values is not None:
                selected[name] = tuple(values[i] for i in indices)
        return replace(self, **selected)

    def coverage(self) -> float:
        """Return the sum of the boxes' areas over the canvas' area, in [0, 1] if disjoint."""
        return float(box_areas(self.boxes).sum() / (self.width * self.height))


class InfeasibleLayoutError(InputError):
    """The requested boxes do not fit the canvas; the message gives the numbers."""


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        least, most = value
        raise ValueError(f"[{least:g}, {most:g}] must be two positive numbers, the smaller first")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]
Side = Annotated[int, Field(ge=16, le=16384)]


class SamplerSpec(SpecModel):
    """A layout recipe: the keys of every sampler, and the interface of samplers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    sampler: str
    canvas: tuple[Side, Side] = Field(
        (1024, 1024), description="Width and height of the layout in px."
    )

    @abstractmethod
    def names(self) -> dict[str, bool]:
        """Return the categories that a layout can contain, and whether each is labelled."""

    def examples(self) -> list[Layout]:
        """Return real layouts for the preview to compare with.

        The list is empty if the recipe does not imitate data.
        """
        return []

    @property
    def may_overlap(self) -> bool:
        """Whether the boxes of a layout may overlap."""
        return True

    def fingerprint(self) -> dict[str, Any]:
        """Return hashes of the files that layouts depend on besides the recipe's keys."""
        return {}

    @abstractmethod
    def check_feasible(self) -> None:
        """Raise InfeasibleLayoutError if some layout could not be sampled as requested."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """Return a layout.

        It depends on the recipe, the state of the generator and the index of the sample alone.
        """
