#!/usr/bin/env python3
"""Make two dogs that no checkpoint knows: the shipped white cut-outs with two new coats.

usage: benchmarks/coats.py OUT [--each 8]
Writes OUT/train/{rex,bud}/*.png, at most 10 cut-outs each, and OUT/heldout/{rex,bud}/*.png with
other poses. The coat of rex is blue with yellow spots, the coat of bud is red with pale stripes.
The script writes the same bytes each time.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthgen.assets import ASSETS

Shares = NDArray[np.float64]
BLUE = (40, 80, 225)
YELLOW = (250, 215, 40)
RED = (215, 35, 40)
PALE = (250, 235, 225)


def make_spots(rng: np.random.Generator, height: int, width: int) -> Shares:
    """Return soft round spots (H, W) in [0, 1] on a jittered grid.

    The grid's spacing is a quarter of the longer side.
    """
    side = max(height, width)
    y, x = np.mgrid[0:height, 0:width] / side
    columns, rows = np.meshgrid(np.arange(-1, 6), np.arange(-1, 6))
    grid = np.stack((columns, rows), -1).reshape(-1, 2) * 0.26 + rng.random(2) * 0.26
    centres = grid + rng.uniform(-0.04, 0.04, grid.shape)
    dx = x[..., None] - centres[:, 0]
    dy = y[..., None] - centres[:, 1]
    nearest = np.sqrt((dx**2 + dy**2).min(2))
    return np.clip((0.085 - nearest) * 40 + 0.5, 0, 1)


def make_stripes(rng: np.random.Generator, height: int, width: int) -> Shares:
    """Return soft, slightly slanted stripes (H, W) in [0, 1], six to the longer side."""
    side = max(height, width)
    y, x = np.mgrid[0:height, 0:width] / side
    slant = rng.uniform(-0.3, 0.3)
    wave = np.sin(2 * np.pi * (6 * (x + slant * y) + rng.random()))
    return np.clip(wave * 4 - 1, 0, 1)


COATS = {"rex": (BLUE, YELLOW, make_spots), "bud": (RED, PALE, make_stripes)}


def apply_coat(cutout: Image.Image, coat: str, seed: int) -> Image.Image:
    """Return the cut-out (RGBA) with a new coat and the old light and shade."""
    pixels = np.asarray(cutout.convert("RGBA")).astype(float)
    base, patch, make_pattern = COATS[coat]
    height, width = pixels.shape[:2]
    share = make_pattern(np.random.default_rng(seed), height, width)[..., None]
    light = pixels[..., :3].mean(2, keepdims=True) / 235
    colour = np.clip((np.array(base) * (1 - share) + np.array(patch) * share) * light, 0, 255)
    return Image.fromarray(np.concatenate([colour, pixels[..., 3:]], 2).astype(np.uint8), "RGBA")


def write_coats(out: Path, each: int) -> None:
    """Write cut-outs with both coats: `each` training poses, and 3 * `each` held-out ones."""
    for split, count in (("train", each), ("heldout", 3 * each)):
        files = sorted((ASSETS / "cutouts" / split / "dog").glob("white_*.webp"))
        for position, coat in enumerate(COATS):
            folder = out / split / coat
            folder.mkdir(parents=True, exist_ok=True)
            poses = files[position :: len(COATS)][:count]
            for number, file in enumerate(poses):
                with Image.open(file) as image:
                    apply_coat(image, coat, number).save(folder / f"{coat}_{number:02d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--each", type=int, default=8)
    args = parser.parse_args()
    write_coats(args.out, args.each)


if __name__ == "__main__":
    main()
