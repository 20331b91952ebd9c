"""Choosing background images and cropping them to the canvas."""

from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MISMATCH_PENALTY = 0.1  # penalty of a word that the prompt lacks; a common word counts 1
SHIFT_LIMIT = 4096  # px; exclusive upper bound of the random shift of a seamless background


def read_words(path: Path) -> set[str]:
    """Return the words of a file's name, without the part from the first underscore on.

    `white-and-black_0_0012.webp` gives {white, and, black}.
    """
    return set(path.stem.split("_")[0].lower().split("-"))


def score_words(words: set[str], prompt_words: set[str]) -> float:
    """Return how well the words of a file's name match those of a prompt."""
    return len(words & prompt_words) - MISMATCH_PENALTY * len(words - prompt_words)


def choose_by_words(files: list[Path], prompt: str, rng: np.random.Generator) -> Path:
    """Sample one of the files whose names match the words of the prompt best."""
    prompt_words = set(prompt.lower().replace(",", " ").split())
    scores = [score_words(read_words(file), prompt_words) for file in files]
    highest = max(scores)
    candidates = files
    if highest > 0:
        candidates = [file for file, score in zip(files, scores, strict=True) if score == highest]
    return candidates[int(rng.integers(len(candidates)))]


@lru_cache(maxsize=64)
def load_rgb(path: Path) -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3) uint8 of an image file."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def crop_background(path: Path, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Return a random crop of a background image, of width x height px.

    An image smaller than the canvas is continued: it is repeated if it is seamless, else mirrored.
    """
    pixels = load_rgb(path)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    missing_rows = max(0, height - pixels.shape[0])
    missing_columns = max(0, width - pixels.shape[1])
    top = int(rng.integers(max(pixels.shape[0] - height, 0) + 1))
    left = int(rng.integers(max(pixels.shape[1] - width, 0) + 1))
    if missing_rows or missing_columns:
        mode: Literal["symmetric", "wrap"] = "symmetric"
        if is_seamless(pixels):
            # The shift moves the place at which the image repeats from one image to the next.
            pixels = np.roll(pixels, rng.integers(0, SHIFT_LIMIT, 2), (0, 1))
            if is_seamless(pixels):
                mode = "wrap"
        pixels = np.pad(pixels, [(0, missing_rows), (0, missing_columns), (0, 0)], mode=mode)
    return Image.fromarray(np.ascontiguousarray(pixels[top : top + height, left : left + width]))


def is_seamless(pixels: NDArray[np.uint8]) -> bool:
    """Tell whether an image (H, W, 3) continues at its opposite edges.

    It does if the difference between opposite edges is like the difference between neighbouring
    pixels inside the image.
    """
    p = pixels.astype(np.int16)
    across_edges = np.abs(p[0] - p[-1]).mean() + np.abs(p[:, 0] - p[:, -1]).mean()
    rows_inside = np.abs(np.diff(p[::16], axis=1)).mean()
    columns_inside = np.abs(np.diff(p[:, ::16], axis=0)).mean()
    return bool(across_edges < 1.5 * (rows_inside + columns_inside) + 2)
