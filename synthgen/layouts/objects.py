"""What to place in a layout: how many objects of which categories, and their sizes."""

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from synthgen.layouts.base import Range, SamplerSpec
from synthgen.spec import SpecModel

Floats = NDArray[np.float64]
SMALL = 32.0
"""The side in px of a square at the limit of COCO's small and medium objects."""
MEDIUM = 96.0
"""The side in px of a square at the limit of COCO's medium and large objects."""


def _check_counts(value: tuple[int, int]) -> tuple[int, int]:
    least, most = value
    if not 0 <= least <= most:
        raise ValueError(f"[{least}, {most}] must be [least, most] with 0 <= least <= most")
    return value


def _number_as_range(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    return value


CountRange = Annotated[tuple[int, int], AfterValidator(_check_counts)]
Counts = Annotated[CountRange, BeforeValidator(_number_as_range)]
"""A number, or [least, most]."""


class SizeSpec(SpecModel):
    """The sizes of boxes: a range, and the distribution of sizes in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    range: Range = Field(description="Smallest and largest size in px, [least, most].")
    distribution: Literal["uniform", "log-uniform", "coco"] = Field(
        "uniform",
        description="Distribution of the longer side; coco: sizes follow the `shares` of COCO's "
        "small, medium and large areas.",
    )
    shares: tuple[float, float, float] = Field(
        (0.41, 0.34, 0.25),
        description="Shares of small, medium and large objects, for the distribution coco.",
    )

    @model_validator(mode="after")
    def has_room(self) -> "SizeSpec":
        if self.distribution != "coco":
            return self
        if min(self.shares) < 0 or sum(self.shares) == 0:
            raise ValueError(
                f"shares: {list(self.shares)} must be three numbers, at least 0, and not all 0"
            )
        edges, shares = self._classes()
        is_empty = np.diff(edges) <= 0
        if (is_empty & (shares > 0)).any():
            least, most = self.range
            raise ValueError(
                f"range: [{least:g}, {most:g}] leaves no room for a class with a share; small, "
                "medium and large objects are separated at 32 and 96 px"
            )
        return self

    def _classes(self) -> tuple[Floats, Floats]:
        """Return the edges (4,) in px of COCO's size classes in the range, and the shares (3,)."""
        edges = np.clip([self.range[0], SMALL, MEDIUM, self.range[1]], *self.range)
        return edges, np.array(self.shares) / max(sum(self.shares), 1e-12)

    def sides(self, u: Floats, aspect: Floats) -> Floats:
        """Return widths and heights (n, 2) in px, by the inverse of the distribution function.

        For "coco" the range is that of the square root of the area, else of the longer side.

        Args:
            u: (n,) uniform random numbers in [0, 1).
            aspect: (n,) widths divided by heights.
        """
        low, high = self.range
        if self.distribution == "coco":
            edges, shares = self._classes()
            starts = np.r_[0, np.cumsum(shares)[:-1]]
            kind = np.clip(np.searchsorted(starts, u, side="right") - 1, 0, 2)
            t = (u - starts[kind]) / np.maximum(shares[kind], 1e-12)
            root = edges[kind] * (edges[kind + 1] / edges[kind]) ** np.clip(t, 0, 1)
            return np.stack([root * np.sqrt(aspect), root / np.sqrt(aspect)], 1)
        if self.distribution == "uniform":
            longer = low + u * (high - low)
        else:
            longer = low * (high / low) ** u
        return np.stack([longer * np.minimum(aspect, 1), longer / np.maximum(aspect, 1)], 1)

    def longest(self, aspect: tuple[float, float]) -> float:
        """Return the longest side in px that a box can have.

        Args:
            aspect: the range of width / height.
        """
        if self.distribution != "coco":
            return self.range[1]
        return float(self.range[1] * np.sqrt(max(aspect[1], 1 / aspect[0])))


def _range_as_size(value: Any) -> Any:
    return {"range": value} if isinstance(value, list | tuple) else value


Size = Annotated[SizeSpec, BeforeValidator(_range_as_size)]
"""[least, most], or a mapping."""


class ObjectSpec(SpecModel):
    """The objects of one category: how many a layout has, and their sizes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: Counts | None = Field(None, description="Number of boxes, or [least, most].")
    share: float | None = Field(
        None,
        gt=0,
        description="Share of the boxes of `total` that remain after all counts; it is given "
        "instead of `count`.",
    )
    probability: float = Field(
        1.0, ge=0, le=1, description="Probability that a layout has the category at all."
    )
    size: Size | None = Field(None, description="Size of the category's boxes; null: the recipe's.")
    aspect: Range | None = Field(
        None, description="Width / height of the category's boxes; null: the recipe's."
    )
    label: bool = Field(
        True,
        description="Whether the objects are labelled; false: they are generated without labels, "
        "as distractors.",
    )

    @model_validator(mode="after")
    def one_number(self) -> "ObjectSpec":
        if (self.count is None) == (self.share is None):
            raise ValueError("count: give either count or share")
        return self


def _count_as_object(value: Any) -> Any:
    if isinstance(value, int | list | tuple) and not isinstance(value, bool):
        return {"count": value}
    return value


Object = Annotated[ObjectSpec, BeforeValidator(_count_as_object)]
"""A number, [least, most], or a mapping."""


class ObjectsSpec(SamplerSpec):
    """A layout recipe that lists its objects: how many of each category, and their sizes."""

    objects: dict[str, Object] = Field(
        description="Objects of each category: a number, [least, most], or a mapping."
    )
    total: Counts | None = Field(
        None, description="Number of all boxes, or [least, most]; needed if a category has a share."
    )
    size: Size = Field(
        SizeSpec(range=(56, 88)),
        description="Longer side of a box in px: [least, most], or a mapping.",
    )
    aspect: Range = Field(
        (0.65, 1.7), description="Width / height of a box, log-uniform in [least, most]."
    )

    @model_validator(mode="after")
    def counts_agree(self) -> "ObjectsSpec":
        shared = self.shared_names()
        if shared and self.total is None:
            verb = "has" if len(shared) == 1 else "have"
            raise ValueError(f"total: missing; {', '.join(shared)} {verb} a share of it")
        if self.total is None:
            return self
        if not shared:
            raise ValueError(
                "total: no category has a share of it; give one `share`, or leave total out"
            )
        counted = sum(o.count[1] for o in self.objects.values() if o.count)
        if counted > self.total[0]:
            raise ValueError(
                f"total: {self.total[0]} is less than the {counted} boxes that categories with a "
                "count can have"
            )
        return self

    @model_validator(mode="after")
    def fits_canvas(self) -> "ObjectsSpec":
        if not self.sizes_are_px:
            return self
        for name, o in self.objects.items():
            longest = self.size_of(name).longest(self.aspect_of(name))
            if longest > min(self.canvas):
                key = "size" if o.size is None else f"objects.{name}.size"
                width, height = self.canvas
                raise ValueError(
                    f"{key}: {longest:g} px is larger than the canvas ({width} x {height})"
                )
        return self

    @property
    def sizes_are_px(self) -> bool:
        """Whether `size` is in px of the canvas."""
        return True

    def names(self) -> dict[str, bool]:
        return {name: o.label for name, o in self.objects.items()}

    def shared_names(self) -> list[str]:
        """Return the categories that have a share of the total."""
        return [name for name, o in self.objects.items() if o.share is not None]

    def size_of(self, name: str) -> SizeSpec:
        """Return the sizes of a category's boxes."""
        return self.objects[name].size or self.size

    def aspect_of(self, name: str) -> tuple[float, float]:
        """Return the range of width / height of a category's boxes."""
        return self.objects[name].aspect or self.aspect

    def longest_side(self, default: float) -> float:
        """Return the longest side in px that a box can have, or the default without objects."""
        longest = [self.size_of(name).longest(self.aspect_of(name)) for name in self.objects]
        return max(longest, default=default)

    def sample_categories(self, rng: np.random.Generator) -> list[str]:
        """Return the categories of a layout's boxes in random order."""
        counts: dict[str, int] = {}
        for name, o in self.objects.items():
            if o.count is not None:
                counts[name] = int(rng.integers(*o.count, endpoint=True))
        if self.total is not None:
            shared = self.shared_names()
            rest = int(rng.integers(*self.total, endpoint=True)) - sum(counts.values())
            weights = np.array([self.objects[name].share for name in shared], float)
            shared_counts = rng.multinomial(rest, weights / weights.sum()).tolist()
            counts.update(zip(shared, shared_counts, strict=True))
        names: list[str] = []
        for name, count in counts.items():
            probability = self.objects[name].probability
            if probability == 1 or rng.random() < probability:
                names += [name] * count
        return [names[i] for i in rng.permutation(len(names))]

    def most_names(self) -> list[str]:
        """Return the categories of the largest number of boxes that a layout can have.

        Boxes of shares are all of the category with the largest boxes.
        """
        names: list[str] = []
        for name, o in self.objects.items():
            if o.count:
                names += [name] * o.count[1]
        if self.total is not None:
            shared = self.shared_names()
            largest = shared[0]
            if self.sizes_are_px:
                largest = max(shared, key=lambda name: self.size_of(name).range[1])
            names += [largest] * (self.total[1] - len(names))
        return names

    def sample_sides(self, names: list[str], rng: np.random.Generator) -> Floats:
        """Return random widths and heights (n, 2) of boxes of these categories.

        They are whole numbers of px, at least 1, if `sizes_are_px`. The sides of the first boxes do
        not depend on how many boxes follow.
        """
        u = rng.random((len(names), 2))
        sides = np.zeros((len(names), 2))
        categories = np.array(names, dtype=object)
        for name in dict.fromkeys(names):
            rows = categories == name
            low, high = self.aspect_of(name)
            aspect = np.exp(np.log(low) + u[rows, 1] * np.log(high / low))
            sides[rows] = self.size_of(name).sides(u[rows, 0], aspect)
        return np.maximum(np.floor(sides), 1) if self.sizes_are_px else sides

    def label_flags(self, names: list[str]) -> NDArray[np.bool_] | None:
        """Return whether each box of these categories is labelled (n,); None if all are."""
        if all(o.label for o in self.objects.values()):
            return None
        return np.array([self.objects[name].label for name in names], bool)

    def describe_sizes(self) -> str:
        """Return the range of sizes as text for messages."""
        low = min(self.size_of(name).range[0] for name in self.objects)
        high = max(self.size_of(name).range[1] for name in self.objects)
        return f"{low:g}-{high:g} px"
