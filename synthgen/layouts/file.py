"""A sampler that reads layouts from a file: one row for each image."""

from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from synthgen.layouts.base import Layout, SamplerSpec
from synthgen.layouts.rows import fit_to_canvas, hash_source, list_labelled_categories, read_entries


class Spec(SamplerSpec):
    """Layouts of a file: image i gets row i, stretched to the canvas.

    After the last row the first one follows. A row of JSON lines or of a Parquet table has width,
    height, categories, and boxes (x0, y0, x1, y1 in px), bbox (x, y, width, height) or masks (COCO
    run-length encodings). Phrases, depth and caption are optional. A caption is the prompt of the
    image, and replaces the scene's background prompt.
    """

    sampler: Literal["file"] = "file"
    source: str = Field(
        description="A .jsonl or .parquet file with one row for each layout, or COCO's "
        "instances.json."
    )

    @model_validator(mode="after")
    def can_be_read(self) -> "Spec":
        try:
            read_entries(self.source)
        except ValueError as error:
            raise ValueError(f"source: {error}") from None
        return self

    def names(self) -> dict[str, bool]:
        return list_labelled_categories(self.source)

    def fingerprint(self) -> dict[str, Any]:
        return {"source_sha256": hash_source(self.source)}

    def check_feasible(self) -> None:
        """Do nothing: every layout of the file is feasible."""

    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """Return the layout of row `index`."""
        entries = read_entries(self.source)
        return fit_to_canvas(entries[index % len(entries)], self.canvas)
