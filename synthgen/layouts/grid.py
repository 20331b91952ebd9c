"""A sampler of rows and columns of boxes, jittered inside their cells."""

from typing import Literal

import numpy as np
from pydantic import Field

from synthgen.layouts.base import InfeasibleLayoutError, Layout
from synthgen.layouts.objects import ObjectsSpec


class Spec(ObjectsSpec):
    """Rows and columns of boxes, each at a random position in its cell."""

    sampler: Literal["grid"] = "grid"
    rows: int | None = Field(
        None,
        ge=1,
        description="Number of rows; null: as many as cells with the canvas' proportions need.",
    )
    columns: int | None = Field(
        None, ge=1, description="Number of columns; null: as many as needed."
    )
    jitter: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of a cell's free space in which a box moves; 0: boxes are centred.",
    )
    gap: float = Field(4, ge=0, description="Distance of two cells in px.")

    @property
    def may_overlap(self) -> bool:
        return False

    def check_feasible(self) -> None:
        """Raise InfeasibleLayoutError if there are too few cells, or too small ones."""
        n = len(self.most_names())
        rows, columns = self.grid_shape(n)
        if n > rows * columns:
            raise InfeasibleLayoutError(
                f"objects: {n} boxes need more than the {rows} x {columns} cells; the largest "
                f"number is {rows * columns}"
            )
        width, height = self.canvas
        cell = min((width + self.gap) / columns, (height + self.gap) / rows) - self.gap
        longest = self.longest_side(default=0.0)
        if n and longest > cell:
            raise InfeasibleLayoutError(
                f"objects: {n} boxes in {rows} x {columns} cells of {cell:.0f} px on {width} x "
                f"{height}: boxes of up to {longest:.0f} px are requested, {cell:.0f} px fit"
            )

    def grid_shape(self, n: int) -> tuple[int, int]:
        """Return the number of rows and columns for n boxes."""
        width, height = self.canvas
        if self.rows is None and self.columns is None:
            columns = max(1, int(np.ceil(np.sqrt(n * width / height))))
            return max(1, -(-n // columns)), columns
        if self.columns is None:
            rows = int(self.rows or 1)
            return rows, max(1, -(-n // rows))
        return self.rows or max(1, -(-n // self.columns)), self.columns

    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """Return a layout with its boxes in random cells."""
        names = self.sample_categories(rng)
        rows, columns = self.grid_shape(len(names))
        if len(names) > rows * columns:
            raise InfeasibleLayoutError(f"{len(names)} boxes in {rows} x {columns} cells")
        sides = self.sample_sides(names, rng)
        cells = np.sort(rng.choice(rows * columns, len(names), replace=False))
        pitch = (np.array(self.canvas) + self.gap) / (columns, rows)
        room = pitch - self.gap - sides
        if len(names) and room.min() < 0:
            raise InfeasibleLayoutError(f"a box of {sides.max():.0f} px is larger than its cell")
        u = 0.5 + self.jitter * (rng.random(sides.shape) - 0.5)
        corners = np.floor(np.stack([cells % columns, cells // columns], 1) * pitch + u * room)
        boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
        return Layout(*self.canvas, boxes, tuple(names), labelled=self.label_flags(names))
