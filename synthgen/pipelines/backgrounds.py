"""Background pictures: which one, and which part of it."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def words(path: Path) -> set[str]:
    """What a file's name says of the picture: `white-and-black_0_0012.webp` is {white, and, black}."""
    return set(path.stem.split("_")[0].lower().split("-"))


def choose_by_words(files: list[Path], prompt: str, rng: np.random.Generator) -> Path:
    """A random file among those whose names share the most words with the prompt."""
    asked = set(prompt.lower().replace(",", " ").split())
    score = [len(words(f) & asked) - 0.1 * len(words(f) - asked) for f in files]
    highest = max(score)
    best = [f for f, s in zip(files, score, strict=True) if s == highest] if highest > 0 else files
    return best[int(rng.integers(len(best)))]


@lru_cache(maxsize=64)
def load_rgb(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of a picture file."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def ground(path: Path, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A random part of a background picture at the canvas' size; a smaller picture is continued by mirroring."""
    pixels = load_rgb(path)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    pad = [(0, max(0, height - pixels.shape[0])), (0, max(0, width - pixels.shape[1])), (0, 0)]
    y, x = (
        int(rng.integers(n + 1))
        for n in (max(pixels.shape[0] - height, 0), max(pixels.shape[1] - width, 0))
    )
    if pad[0][1] or pad[1][1]:  # where the mirrors stand differs from picture to picture
        pixels = (
            np.roll(pixels, rng.integers(0, 4096, 2), (0, 1)) if is_seamless(pixels) else pixels
        )
        pixels = np.pad(pixels, pad, mode="wrap" if is_seamless(pixels) else "symmetric")
    return Image.fromarray(np.ascontiguousarray(pixels[y : y + height, x : x + width]))


def is_seamless(pixels: NDArray[np.uint8]) -> bool:
    """Whether (H, W, 3) continues at the opposite edge: the step over the edge is like the steps inside."""
    p = pixels.astype(np.int16)
    over = np.abs(p[0] - p[-1]).mean() + np.abs(p[:, 0] - p[:, -1]).mean()
    inside = np.abs(np.diff(p[::16], axis=1)).mean() + np.abs(np.diff(p[:, ::16], axis=0)).mean()
    return bool(over < 1.5 * inside + 2)
