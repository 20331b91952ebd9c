"""A sampler that replays the layouts of an annotated dataset with small variations."""

from functools import lru_cache
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from synthgen.formats.entries import Entry
from synthgen.geometry import box_sides
from synthgen.layouts.base import Layout, SamplerSpec
from synthgen.layouts.rows import (
    fit_to_canvas,
    hash_source,
    list_labelled_categories,
    read_entries,
    read_modification_time,
)

MAX_EXAMPLES = 16


class Spec(SamplerSpec):
    """Random layouts of an annotated dataset: filtered, resized, mirrored and jittered."""

    sampler: Literal["coco"] = "coco"
    source: str = Field(
        description="COCO's instances.json, a .jsonl or .parquet file, or the output folder of "
        "`synthgen run`."
    )
    categories: tuple[str, ...] | None = Field(
        None, description="Names of the categories to keep; null: all."
    )
    least: float = Field(
        8,
        ge=1,
        description="Minimum shorter side of a box on the canvas in px; smaller boxes are left "
        "out.",
    )
    boxes: tuple[int, int] = Field(
        (1, 1000), description="Number of boxes that a filtered layout may have, [least, most]."
    )
    jitter: float = Field(
        0.05,
        ge=0,
        le=0.5,
        description="Standard deviation of a box's position and size, relative to its sides.",
    )
    flip: float = Field(0.5, ge=0, le=1, description="Probability that a layout is mirrored.")

    @model_validator(mode="after")
    def has_layouts(self) -> "Spec":
        try:
            known = list_labelled_categories(self.source)
        except ValueError as error:
            raise ValueError(f"source: {error}") from None
        unknown = sorted(set(self.categories or ()) - set(known))
        if unknown:
            have = ", ".join(sorted(known))
            raise ValueError(f"categories: {unknown[0]!r} is not in {self.source}; it has {have}")
        if not self.matching_entries():
            least, most = self.boxes
            raise ValueError(
                f"boxes: no layout of {self.source} has {least} to {most} boxes after the filter"
            )
        return self

    def matching_entries(self) -> list[Entry]:
        """Return the entries whose filtered layout has an allowed number of boxes."""
        return _find_matching_entries(self, read_modification_time(self.source))

    def filter_layout(self, entry: Entry) -> Layout:
        """Return the layout of an entry on the canvas, without the boxes that the recipe drops."""
        layout = fit_to_canvas(entry, self.canvas)
        if len(layout) == 0:
            return layout
        is_kept = box_sides(layout.boxes).min(1) >= self.least
        if self.categories:
            is_kept &= [name in self.categories for name in layout.categories]
        return layout.select(np.flatnonzero(is_kept).tolist())

    def names(self) -> dict[str, bool]:
        if self.categories is not None:
            return dict.fromkeys(self.categories, True)
        return list_labelled_categories(self.source)

    def examples(self) -> list[Layout]:
        return [self.filter_layout(entry) for entry in self.matching_entries()[:MAX_EXAMPLES]]

    def fingerprint(self) -> dict[str, Any]:
        return {"source_sha256": hash_source(self.source)}

    def check_feasible(self) -> None:
        """Do nothing: every matching layout is feasible."""

    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """Return a random layout of the source, varied."""
        entries = self.matching_entries()
        layout = self.filter_layout(entries[int(rng.integers(len(entries)))])
        layout = Layout(*self.canvas, layout.boxes, layout.categories, layout.phrases)
        if rng.random() < self.flip:
            layout = mirror_layout(layout)
        return jitter_boxes(layout, self.jitter, rng)


@lru_cache(maxsize=4)
def _find_matching_entries(spec: Spec, modified: int) -> list[Entry]:
    """Return the entries that match; `modified` is a key of the cache only."""
    least, most = spec.boxes
    entries = read_entries(spec.source)
    return [entry for entry in entries if least <= len(spec.filter_layout(entry)) <= most]


def mirror_layout(layout: Layout) -> Layout:
    """Return a layout with left and right exchanged."""
    flipped = layout.boxes[:, [2, 1, 0, 3]] * np.array([-1, 1, -1, 1], np.float32)
    boxes = (flipped + np.array([1, 0, 1, 0]) * layout.width).astype(np.float32)
    return Layout(layout.width, layout.height, boxes, layout.categories, layout.phrases)


def jitter_boxes(layout: Layout, deviation: float, rng: np.random.Generator) -> Layout:
    """Return a layout whose boxes are slightly moved and resized.

    Boxes stay on the canvas and are at least 1 px wide and high.

    Args:
        deviation: the standard deviation of positions and sizes, relative to a box's sides.
    """
    canvas = np.array([layout.width, layout.height], np.float32)
    sides = box_sides(layout.boxes)
    centre = layout.boxes[:, :2] + sides / 2 + rng.normal(0, deviation, sides.shape) * sides
    sides = np.clip(sides * np.exp(rng.normal(0, deviation, sides.shape)), 1, canvas)
    low = np.clip(centre - sides / 2, 0, canvas - sides)
    boxes = np.concatenate([low, np.minimum(low + sides, canvas)], 1).astype(np.float32)
    return Layout(layout.width, layout.height, boxes, layout.categories, layout.phrases)
