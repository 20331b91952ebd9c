"""Real layouts replayed, varied a little."""

from functools import lru_cache
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from synthgen.formats.entries import Entry
from synthgen.geometry import box_sides
from synthgen.layouts.base import Layout, SamplerSpec
from synthgen.layouts.rows import changed_at, on_canvas, read_entries, source_hash


class Spec(SamplerSpec):
    """Layouts of an annotated dataset, a random one for each image: jittered, mirrored, filtered, at another size."""

    sampler: Literal["coco"] = "coco"
    source: str = Field(
        description="COCO's instances.json, .jsonl, .parquet, or the output folder of a `synthgen run`"
    )
    categories: tuple[str, ...] | None = Field(None, description="names to keep; null: all")
    least: float = Field(
        8, ge=1, description="shorter side of a box on the canvas, px: smaller ones are left out"
    )
    boxes: tuple[int, int] = Field(
        (1, 1000), description="how many boxes a layout must have left, [least, most]"
    )
    jitter: float = Field(
        0.05, ge=0, le=0.5, description="deviation of a box's place and size, share of its sides"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability that a layout is mirrored")

    @model_validator(mode="after")
    def has_layouts(self) -> "Spec":
        try:
            entries = read_entries(self.source)
        except ValueError as error:
            raise ValueError(f"source: {error}") from None
        known = {name for entry in entries for name in entry.names}
        unknown = sorted(set(self.categories or ()) - known)
        if unknown:
            raise ValueError(
                f"categories: {unknown[0]!r} is not in {self.source}; it has {', '.join(sorted(known))}"
            )
        if not self.kept():
            raise ValueError(
                f"boxes: no layout of {self.source} has {self.boxes[0]} to {self.boxes[1]} boxes after the filter"
            )
        return self

    def kept(self) -> list[Entry]:
        """Entries whose filtered layout has as many boxes as are asked for; looked for once."""
        return _kept(self, changed_at(self.source))

    def filtered(self, entry: Entry) -> Layout:
        """The entry on the canvas, without what the recipe leaves out."""
        layout = on_canvas(entry, self.canvas)
        sides = box_sides(layout.boxes).min(1, initial=np.inf) if len(layout) else np.zeros(0)
        wanted = self.categories or layout.categories
        return layout.select(
            [
                i
                for i, name in enumerate(layout.categories)
                if name in wanted and sides[i] >= self.least
            ]
        )

    def names(self) -> dict[str, bool]:
        known = {name: True for entry in read_entries(self.source) for name in entry.names}
        return known if self.categories is None else dict.fromkeys(self.categories, True)

    def examples(self) -> list[Layout]:
        return [self.filtered(entry) for entry in self.kept()[:16]]

    def fingerprint(self) -> dict[str, Any]:
        return {"source_sha256": source_hash(self.source)}

    def check_feasible(self) -> None:
        """Whatever is kept can be made."""

    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """A random layout of the source, varied."""
        kept = self.kept()
        layout = self.filtered(kept[int(rng.integers(len(kept)))])
        layout = Layout(*self.canvas, layout.boxes, layout.categories, layout.phrases)
        return jittered(mirrored(layout) if rng.random() < self.flip else layout, self.jitter, rng)


@lru_cache(maxsize=4)
def _kept(spec: Spec, changed: int) -> list[Entry]:
    return [
        e
        for e in read_entries(spec.source)
        if spec.boxes[0] <= len(spec.filtered(e)) <= spec.boxes[1]
    ]


def mirrored(layout: Layout) -> Layout:
    """Left and right exchanged."""
    boxes = (
        layout.boxes[:, [2, 1, 0, 3]] * np.array([-1, 1, -1, 1], np.float32)
        + np.array([1, 0, 1, 0]) * layout.width
    )
    return Layout(
        layout.width, layout.height, boxes.astype(np.float32), layout.categories, layout.phrases
    )


def jittered(layout: Layout, deviation: float, rng: np.random.Generator) -> Layout:
    """Boxes moved and resized a little, kept on the canvas, at least 1 px large."""
    canvas = np.array([layout.width, layout.height], np.float32)
    sides = box_sides(layout.boxes)
    centre = layout.boxes[:, :2] + sides / 2 + rng.normal(0, deviation, sides.shape) * sides
    sides = np.clip(sides * np.exp(rng.normal(0, deviation, sides.shape)), 1, canvas)
    low = np.clip(centre - sides / 2, 0, canvas - sides)
    boxes = np.concatenate([low, np.minimum(low + sides, canvas)], 1).astype(np.float32)
    return Layout(layout.width, layout.height, boxes, layout.categories, layout.phrases)
