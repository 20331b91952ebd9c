"""An image as a background and objects pasted over it, so that one object can be replaced."""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from synthgen.pipelines.diffusion.norm_statistics import Statistics

Owners = NDArray[np.int32]
"""(H, W): the index of the box whose object covers a pixel, or -1."""


@dataclass(frozen=True, eq=False)
class Cutout:
    """An object at the size of its box, with its feathered surroundings.

    Attributes:
        rows, columns: the part of the canvas that it may change.
        pixels: (h, w, 3) uint8.
        weights: (h, w, 1) float32 in [0, 1], how much of the canvas the pixels replace.
        covered: (h, w), the pixels that the object covers.
    """

    rows: slice
    columns: slice
    pixels: NDArray[np.uint8]
    weights: NDArray[np.float32]
    covered: NDArray[np.bool_]

    def paste(self, canvas: NDArray[np.uint8]) -> None:
        """Change a canvas (H, W, 3) in place."""
        below = canvas[self.rows, self.columns]
        blended = self.weights * self.pixels + (1 - self.weights) * below
        canvas[self.rows, self.columns] = np.round(blended).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Collage:
    """A background, and the objects over it.

    Attributes:
        background: (H, W, 3) uint8.
        cutouts: the objects by the indices of their boxes, in the order in which they are pasted.
        statistics: those with which the autoencoder decoded the background; None if they are not
            known.
    """

    background: NDArray[np.uint8]
    cutouts: dict[int, Cutout] = field(default_factory=dict)
    statistics: Statistics | None = field(default=None, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Width, height in px."""
        height, width = self.background.shape[:2]
        return width, height

    def draw(self, below: int | None = None) -> NDArray[np.uint8]:
        """Return the image (H, W, 3), or only what is pasted before one of its objects."""
        canvas = self.background.copy()
        for number, cutout in self.cutouts.items():
            if number == below:
                break
            cutout.paste(canvas)
        return canvas

    def find_owners(self) -> Owners:
        """Return which object each pixel shows, (H, W)."""
        owners = np.full(self.background.shape[:2], -1, np.int32)
        for number, cutout in self.cutouts.items():
            owners[cutout.rows, cutout.columns][cutout.covered] = number
        return owners

    def replace(self, other: "Collage", numbers: Collection[int]) -> "Collage":
        """Return this collage with some of its objects replaced by those of another one."""
        cutouts = {}
        for number, cutout in self.cutouts.items():
            cutouts[number] = other.cutouts[number] if number in numbers else cutout
        return Collage(self.background, cutouts, self.statistics)
