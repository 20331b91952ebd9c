"""What is to be placed: how many of which categories, and how large."""

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from synthgen.layouts.base import Range, SamplerSpec
from synthgen.spec import SpecModel

Floats = NDArray[np.float64]
SMALL, MEDIUM = 32.0, 96.0  # roots of the areas that part COCO's small, medium and large objects


def _ascending_counts(value: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= value[0] <= value[1]:
        raise ValueError(f"[{value[0]}, {value[1]}] must be [least, most] with 0 <= least <= most")
    return value


CountRange = Annotated[tuple[int, int], AfterValidator(_ascending_counts)]


def _one_as_range(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


Counts = Annotated[CountRange, BeforeValidator(_one_as_range)]  # a number, or [least, most]


class SizeSpec(SpecModel):
    """How large boxes are: a range and how sizes are distributed in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    range: Range = Field(description="px, [least, most]")
    distribution: Literal["uniform", "log-uniform", "coco"] = Field(
        "uniform",
        description="of the longer side; coco: by shares of COCO's small, medium and large areas",
    )
    shares: tuple[float, float, float] = Field(
        (0.41, 0.34, 0.25), description="of small, medium and large, with coco"
    )

    @model_validator(mode="after")
    def has_room(self) -> "SizeSpec":
        edges, shares = self._classes()
        if self.distribution == "coco" and (min(self.shares) < 0 or sum(self.shares) == 0):
            raise ValueError(
                f"shares: {list(self.shares)} must be three numbers from 0 on, not all 0"
            )
        if self.distribution == "coco" and ((np.diff(edges) <= 0) & (shares > 0)).any():
            small, large = self.range
            raise ValueError(
                f"range: [{small:g}, {large:g}] has no room for every class with a share; they part at 32 and 96 px"
            )
        return self

    def _classes(self) -> tuple[Floats, Floats]:
        edges = np.clip([self.range[0], SMALL, MEDIUM, self.range[1]], *self.range)
        return edges, np.array(self.shares) / max(sum(self.shares), 1e-12)

    def sides(self, u: Floats, aspect: Floats) -> Floats:
        """Widths and heights (n, 2) from uniform numbers (n,) and aspects (n,): the inverse of the distribution.

        With "coco" the range is that of the root of the area, else that of the longer side.
        """
        low, high = self.range
        if self.distribution == "coco":
            edges, shares = self._classes()
            starts = np.r_[0, np.cumsum(shares)[:-1]]
            kind = np.clip(np.searchsorted(starts, u, side="right") - 1, 0, 2)
            t = (u - starts[kind]) / np.maximum(shares[kind], 1e-12)
            root = edges[kind] * (edges[kind + 1] / edges[kind]) ** np.clip(t, 0, 1)
            return np.stack([root * np.sqrt(aspect), root / np.sqrt(aspect)], 1)
        longer = (
            low + u * (high - low) if self.distribution == "uniform" else low * (high / low) ** u
        )
        return np.stack([longer * np.minimum(aspect, 1), longer / np.maximum(aspect, 1)], 1)

    def longest(self, aspect: tuple[float, float]) -> float:
        """The longest side that can be drawn, px."""
        stretch = np.sqrt(max(aspect[1], 1 / aspect[0])) if self.distribution == "coco" else 1.0
        return float(self.range[1] * stretch)


def _range_as_size(value: Any) -> Any:
    return {"range": value} if isinstance(value, list | tuple) else value


Size = Annotated[SizeSpec, BeforeValidator(_range_as_size)]  # [least, most], or a mapping


class ObjectSpec(SpecModel):
    """How many objects of one category a layout has, and what they are like."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: Counts | None = Field(None, description="a number, or [least, most]")
    share: float | None = Field(
        None, gt=0, description="instead of a count: part of what `total` leaves"
    )
    probability: float = Field(1.0, ge=0, le=1, description="of the category to be there at all")
    size: Size | None = Field(None, description="instead of the recipe's")
    aspect: Range | None = Field(None, description="instead of the recipe's")
    label: bool = Field(True, description="false: a distractor, drawn but not labelled")

    @model_validator(mode="after")
    def one_number(self) -> "ObjectSpec":
        if (self.count is None) == (self.share is None):
            raise ValueError("count: give either count or share")
        return self


def _count_as_object(value: Any) -> Any:
    return (
        {"count": value}
        if isinstance(value, int | list | tuple) and not isinstance(value, bool)
        else value
    )


Object = Annotated[
    ObjectSpec, BeforeValidator(_count_as_object)
]  # a number, [least, most], or a mapping


class ObjectsSpec(SamplerSpec):
    """A recipe that says how many objects of which size there are."""

    objects: dict[str, Object] = Field(
        description="of each category: how many, [least, most], or a mapping"
    )
    total: Counts | None = Field(
        None, description="boxes in all, where categories are given as shares"
    )
    size: Size = Field(
        SizeSpec(range=(56, 88)),
        description="longer side of a box, px: [least, most], or a mapping",
    )
    aspect: Range = Field((0.65, 1.7), description="width / height: [least, most], log-uniform")

    @model_validator(mode="after")
    def counts_agree(self) -> "ObjectsSpec":
        shares = [name for name, o in self.objects.items() if o.share is not None]
        if shares and self.total is None:
            raise ValueError(
                f"total: missing; {', '.join(shares)} {'has' if len(shares) == 1 else 'have'} a share of it"
            )
        if self.total is not None and not shares:
            raise ValueError(
                "total: no category has a share of it; give one `share`, or leave total out"
            )
        fixed = sum(o.count[1] for o in self.objects.values() if o.count)
        if self.total is not None and fixed > self.total[0]:
            raise ValueError(
                f"total: {self.total[0]} is less than the {fixed} boxes that categories with a count can have"
            )
        return self

    @model_validator(mode="after")
    def fits_canvas(self) -> "ObjectsSpec":
        for name, o in self.objects.items() if self.sizes_are_px else ():
            longest = (o.size or self.size).longest(o.aspect or self.aspect)
            if longest > min(self.canvas):
                key = "size" if o.size is None else f"objects.{name}.size"
                raise ValueError(
                    f"{key}: {longest:g} px is larger than the canvas ({self.canvas[0]} x {self.canvas[1]})"
                )
        return self

    @property
    def sizes_are_px(self) -> bool:
        return True

    def names(self) -> dict[str, bool]:
        return {name: o.label for name, o in self.objects.items()}

    def draw_names(self, rng: np.random.Generator) -> list[str]:
        """The categories of one layout's boxes, in random order."""
        counts = {
            name: int(rng.integers(*o.count, endpoint=True))
            for name, o in self.objects.items()
            if o.count is not None
        }
        if self.total is not None:
            shared = {name: o.share for name, o in self.objects.items() if o.share is not None}
            left = int(rng.integers(*self.total, endpoint=True)) - sum(counts.values())
            weights = np.array(list(shared.values()), float)
            counts.update(
                zip(shared, rng.multinomial(left, weights / weights.sum()).tolist(), strict=True)
            )
        there = {
            name: n
            for name, n in counts.items()
            if self.objects[name].probability == 1 or self._occurs(name, rng)
        }
        names = [name for name, n in there.items() for _ in range(n)]
        return [names[i] for i in rng.permutation(len(names))]

    def _occurs(self, name: str, rng: np.random.Generator) -> bool:
        return bool(rng.random() < self.objects[name].probability)

    def most_names(self) -> list[str]:
        """The categories of the largest number of boxes that a layout can have; shares go to the largest category."""
        names = [name for name, o in self.objects.items() if o.count for _ in range(o.count[1])]
        if self.total is not None:
            shared = [name for name, o in self.objects.items() if o.share is not None]
            largest = (
                max(shared, key=lambda n: (self.objects[n].size or self.size).range[1])
                if self.sizes_are_px
                else shared[0]
            )
            names += [largest] * (self.total[1] - len(names))
        return names

    def draw_sides(self, names: list[str], rng: np.random.Generator) -> Floats:
        """Widths and heights (n, 2) of boxes of these categories, in whole px, at least 1."""
        u = rng.random(
            (len(names), 2)
        )  # row by row: the first boxes do not depend on how many follow
        sides = np.zeros((len(names), 2))
        kinds = np.array(names, dtype=object)
        for name in dict.fromkeys(names):
            o, rows = self.objects[name], kinds == name
            low, high = o.aspect or self.aspect
            aspect = np.exp(np.log(low) + u[rows, 1] * np.log(high / low))
            sides[rows] = (o.size or self.size).sides(u[rows, 0], aspect)
        return np.maximum(np.floor(sides), 1) if self.sizes_are_px else sides

    def labelled(self, names: list[str]) -> NDArray[np.bool_] | None:
        """Which boxes of these categories are labelled; None if all are."""
        return (
            None
            if all(o.label for o in self.objects.values())
            else np.array([self.objects[n].label for n in names], bool)
        )

    def describe_sizes(self) -> str:
        """The sizes in words, for messages."""
        low = min((o.size or self.size).range[0] for o in self.objects.values())
        high = max((o.size or self.size).range[1] for o in self.objects.values())
        return f"{low:g}-{high:g} px"
