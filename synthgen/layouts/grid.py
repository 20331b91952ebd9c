"""Rows and columns of boxes, jittered inside their cells."""

from typing import Literal

import numpy as np
from pydantic import Field

from synthgen.layouts.base import InfeasibleLayoutError, Layout
from synthgen.layouts.objects import ObjectsSpec


class Spec(ObjectsSpec):
    """Rows and columns of boxes, each anywhere in its cell."""

    sampler: Literal["grid"] = "grid"
    rows: int | None = Field(
        None, ge=1, description="null: as many as the boxes need for cells of the canvas' shape"
    )
    columns: int | None = Field(None, ge=1, description="null: likewise")
    jitter: float = Field(
        1.0, ge=0, le=1, description="share of a cell's room that a box moves in; 0: centred"
    )
    gap: float = Field(4, ge=0, description="px between two cells")

    @property
    def may_overlap(self) -> bool:
        return False

    def check_feasible(self) -> None:
        """Raise InfeasibleLayoutError if there are too few cells, or cells too small for the largest box."""
        n = len(self.most_names())
        rows, columns = self.shape(n)
        if n > rows * columns:
            raise InfeasibleLayoutError(
                f"objects: {n} boxes need more than the {rows} x {columns} cells; the largest number is {rows * columns}"
            )
        cell = (
            min((self.canvas[0] + self.gap) / columns, (self.canvas[1] + self.gap) / rows)
            - self.gap
        )
        longest = max(
            ((o.size or self.size).longest(o.aspect or self.aspect) for o in self.objects.values()),
            default=0,
        )
        if n and longest > cell:
            raise InfeasibleLayoutError(
                f"objects: {n} boxes in {rows} x {columns} cells of {cell:.0f} px on {self.canvas[0]} x {self.canvas[1]}: "
                f"boxes may be {cell:.0f} px long, {longest:.0f} px is asked"
            )

    def shape(self, n: int) -> tuple[int, int]:
        """Rows and columns for n boxes."""
        width, height = self.canvas
        if self.rows is None and self.columns is None:
            columns = max(1, int(np.ceil(np.sqrt(n * width / height))))
            return max(1, -(-n // columns)), columns
        if self.columns is None:
            return int(self.rows or 1), max(1, -(-n // int(self.rows or 1)))
        return self.rows or max(1, -(-n // self.columns)), self.columns

    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """One layout: its boxes in random cells."""
        names = self.draw_names(rng)
        rows, columns = self.shape(len(names))
        if len(names) > rows * columns:
            raise InfeasibleLayoutError(f"{len(names)} boxes in {rows} x {columns} cells")
        sides = self.draw_sides(names, rng)
        cells = np.sort(rng.choice(rows * columns, len(names), replace=False))
        pitch = (np.array(self.canvas) + self.gap) / (columns, rows)
        room = pitch - self.gap - sides
        if len(names) and room.min() < 0:
            raise InfeasibleLayoutError(f"a box of {sides.max():.0f} px is larger than its cell")
        u = 0.5 + self.jitter * (rng.random(sides.shape) - 0.5)
        corners = np.floor(np.stack([cells % columns, cells // columns], 1) * pitch + u * room)
        boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
        return Layout(*self.canvas, boxes, tuple(names), labelled=self.labelled(names))
