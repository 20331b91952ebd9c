"""Layouts, and what every sampler of layouts has in common (numpy only).

Each other module of this folder that defines a `Spec` is one sampler, which the `sampler` of its spec names.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field

from synthgen.annotations import default_phrase
from synthgen.errors import InputError
from synthgen.geometry import box_areas
from synthgen.spec import SpecModel

Boxes = NDArray[np.float32]
HELD = 0.5  # share of a box that a window or a crop must hold for the box to count there


@dataclass(frozen=True)
class Layout:
    """The boxes of one picture, before anything is painted.

    Attributes:
        width, height: canvas in px.
        boxes: (N, 4) float32, xyxy in px, inside the canvas.
        categories: N category names, as they stand in the recipe's `objects`.
        phrases: N prompts, one a box ("a brown dog"); None until the scene is drawn.
        attributes: N free mappings, kept with the annotation; None if there are none.
        masks: N COCO run-length encodings ({"size", "counts"}); None if not known.
        depth: (N,) drawing order, far to near; None means any order.
        occluded: (N,) hidden fraction in [0, 1]; None means all visible.
        labelled: (N,) whether a box is annotated; None means all. The others are distractors: drawn, not labelled.
        caption: of the whole picture, where the layout came with one; it is the scene's then.
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
        """The phrase of each box; the default one of its category where the layout has none."""
        return self.phrases or tuple(default_phrase(name) for name in self.categories)

    def with_phrases(self, phrases: tuple[str, ...]) -> "Layout":
        """The same layout with one prompt a box."""
        return replace(self, phrases=phrases)

    def select(self, indices: Sequence[int]) -> "Layout":
        """The layout of some of the boxes, in the order of the indices."""

        def some(values: Any) -> Any:
            if values is None:
                return None
            return (
                values[list(indices)]
                if isinstance(values, np.ndarray)
                else tuple(values[i] for i in indices)
            )

        lists = (
            "boxes",
            "categories",
            "phrases",
            "attributes",
            "masks",
            "depth",
            "occluded",
            "labelled",
        )
        return replace(self, **{name: some(getattr(self, name)) for name in lists})

    def coverage(self) -> float:
        """Sum of box areas over the area of the canvas, in [0, 1] for disjoint boxes."""
        return float(box_areas(self.boxes).sum() / (self.width * self.height))


def overlapping_pairs(boxes: Boxes, gap: float = 0.0) -> int:
    """Number of pairs among boxes (N, 4) xyxy that are nearer than `gap` px on both axes at once."""
    low, high = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    near = (
        (low[:, None] < high[None] + gap - 1e-3) & (low[None] < high[:, None] + gap - 1e-3)
    ).all(2)
    return int((near.sum() - len(boxes)) // 2)


class InfeasibleLayoutError(InputError):
    """The asked boxes do not fit the canvas; the message has the numbers."""


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"[{value[0]:g}, {value[1]:g}] must be two positive numbers, least first")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]
Side = Annotated[int, Field(ge=16, le=16384)]


class SamplerSpec(SpecModel):
    """A layout recipe: what every sampler reads, and the calls the rest of the program makes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    sampler: str
    canvas: tuple[Side, Side] = Field((1024, 1024), description="width, height in px")

    @abstractmethod
    def names(self) -> dict[str, bool]:
        """The categories that a layout can hold, and whether each is labelled."""

    def examples(self) -> list[Layout]:
        """Real layouts that sampled ones should be like, for the preview; none if the recipe follows no data."""
        return []

    @property
    def may_overlap(self) -> bool:
        """Whether boxes of a layout may overlap."""
        return True

    def fingerprint(self) -> dict[str, Any]:
        """What layouts depend on, beyond the recipe's own keys: hashes of files."""
        return {}

    @abstractmethod
    def check_feasible(self) -> None:
        """Raise InfeasibleLayoutError if some sample could not be made as asked."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """One layout: a function of the recipe, the generator's state and the sample's index alone."""
