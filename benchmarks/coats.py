#!/usr/bin/env python3
"""Two dogs that no checkpoint has met: the shipped white cut-outs in two new coats. Deterministic.

usage: benchmarks/coats.py OUT [--each 8]
Writes OUT/train/{rex,bud}/*.png, at most 10 cut-outs each, and OUT/heldout/{rex,bud}/*.png of other poses.
rex: blue with yellow spots; bud: red with pale stripes.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthgen.assets import ASSETS

Shares = NDArray[np.float64]
BLUE, YELLOW, RED, PALE = ((40, 80, 225), (250, 215, 40), (215, 35, 40), (250, 235, 225))


def spots(rng: np.random.Generator, height: int, width: int) -> Shares:
    """Soft round spots (H, W) in [0, 1], a quarter of the longer side wide, on a jittered grid."""
    side = max(height, width)
    y, x = np.mgrid[0:height, 0:width] / side
    grid = (
        np.stack(np.meshgrid(np.arange(-1, 6), np.arange(-1, 6)), -1).reshape(-1, 2) * 0.26
        + rng.random(2) * 0.26
    )
    centres = grid + rng.uniform(-0.04, 0.04, grid.shape)
    near = np.sqrt(
        ((x[..., None] - centres[:, 0]) ** 2 + (y[..., None] - centres[:, 1]) ** 2).min(2)
    )
    return np.clip((0.085 - near) * 40 + 0.5, 0, 1)


def stripes(rng: np.random.Generator, height: int, width: int) -> Shares:
    """Soft upright stripes (H, W) in [0, 1], a little slanted, six to the longer side."""
    side = max(height, width)
    y, x = np.mgrid[0:height, 0:width] / side
    wave = np.sin(2 * np.pi * (6 * (x + rng.uniform(-0.3, 0.3) * y) + rng.random()))
    return np.clip(wave * 4 - 1, 0, 1)


COATS = {"rex": (BLUE, YELLOW, spots), "bud": (RED, PALE, stripes)}


def dress(cutout: Image.Image, coat: str, seed: int) -> Image.Image:
    """The cut-out (RGBA) in a new coat: its light and shade are kept."""
    pixels = np.asarray(cutout.convert("RGBA")).astype(float)
    base, patch, pattern = COATS[coat]
    share = pattern(np.random.default_rng(seed), *pixels.shape[:2])[..., None]
    light = pixels[..., :3].mean(2, keepdims=True) / 235
    colour = np.clip((np.array(base) * (1 - share) + np.array(patch) * share) * light, 0, 255)
    return Image.fromarray(np.concatenate([colour, pixels[..., 3:]], 2).astype(np.uint8), "RGBA")


def write_coats(out: Path, each: int) -> None:
    """Dressed cut-outs of both coats: `each` of the training poses, three times as many of the held-out ones."""
    for split, count in (("train", each), ("heldout", 3 * each)):
        files = sorted((ASSETS / "cutouts" / split / "dog").glob("white_*.webp"))
        for n, coat in enumerate(COATS):
            folder = out / split / coat
            folder.mkdir(parents=True, exist_ok=True)
            for k, file in enumerate(files[n :: len(COATS)][:count]):
                with Image.open(file) as image:
                    dress(image, coat, k).save(folder / f"{coat}_{k:02d}.png")


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
