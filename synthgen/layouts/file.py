"""Layouts of your own: a row of a file for each image."""

from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from synthgen.layouts.base import Layout, SamplerSpec
from synthgen.layouts.rows import on_canvas, read_entries, source_hash


class Spec(SamplerSpec):
    """Layouts given in a file: image i has row i (after the last row the first), stretched to the canvas.

    A row of JSON lines or of a Parquet table has width, height, categories, and boxes (x0, y0, x1, y1 in px), bbox (x, y,
    width, height) or masks (COCO run-length encodings); phrases, depth and caption if you like. A caption is the prompt of the
    picture, and of its background instead of the scene's.
    """

    sampler: Literal["file"] = "file"
    source: str = Field(
        description=".jsonl or .parquet with a row a layout; or COCO's instances.json"
    )

    @model_validator(mode="after")
    def can_be_read(self) -> "Spec":
        try:
            read_entries(self.source)
        except ValueError as error:
            raise ValueError(f"source: {error}") from None
        return self

    def names(self) -> dict[str, bool]:
        return {name: True for entry in read_entries(self.source) for name in entry.names}

    def fingerprint(self) -> dict[str, Any]:
        return {"source_sha256": source_hash(self.source)}

    def check_feasible(self) -> None:
        """Whatever could be read can be made."""

    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """The layout of row `index`."""
        entries = read_entries(self.source)
        return on_canvas(entries[index % len(entries)], self.canvas)
