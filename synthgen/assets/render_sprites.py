"""Make the cut-outs of cats, balls and trees that ship with the package, from emoji drawings.

Not needed at run time. To run it: `npm pack @iconify-json/noto @iconify-json/fluent-emoji`, unpack
each into a folder of its own name below SETS, `pip install resvg-py`, then
`python -m synthgen.assets.render_sprites SETS OUT --count 60 --seed 0`. A drawing keeps its
luminance, and gets one of the colours that prompts name, light from one side, and grain.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import resvg_py  # type: ignore[import-not-found, import-untyped, unused-ignore]
from numpy.typing import NDArray
from PIL import Image

SIDE = 192  # px
XMLNS = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
Colour = tuple[int, int, int]

DRAWINGS = {
    "cat": ("fluent-emoji/cat", "fluent-emoji/black-cat", "noto/cat", "noto/black-cat"),
    "ball": (
        "noto/soccer-ball",
        "noto/basketball",
        "noto/volleyball",
        "noto/baseball",
        "fluent-emoji/volleyball",
    ),
    "tree": (
        "noto/deciduous-tree",
        "noto/evergreen-tree",
        "fluent-emoji/deciduous-tree",
        "fluent-emoji/evergreen-tree",
    ),
}
COLOURS: dict[str, dict[str, Colour]] = {
    "cat": {
        "brown": (150, 96, 56),
        "white": (240, 236, 230),
        "black": (52, 50, 52),
        "gray": (140, 140, 142),
    },
    "ball": {
        "red": (206, 44, 40),
        "white": (240, 240, 238),
        "blue": (48, 92, 200),
        "orange": (236, 128, 40),
    },
    "tree": {"green": (62, 124, 48), "dark-green": (34, 84, 44), "red": (172, 70, 40)},
}


def read_drawing(sets: Path, name: str) -> NDArray[np.float64]:
    """Return a drawing, RGBA (SIDE, SIDE, 4) in [0, 1]."""
    folder, icon = name.split("/")
    data = json.loads((sets / folder / "package/icons.json").read_text())
    entry = data["icons"][icon]
    side = entry.get("height", data["height"])
    svg = f'<svg {XMLNS} viewBox="0 0 {side} {side}">{entry["body"]}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return np.asarray(image, float) / 255


def sample_grain(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return coarse and fine noise (SIDE, SIDE, 1) around 1."""
    grid = Image.fromarray(rng.normal(1, 0.08, (24, 24)).astype(np.float32))
    coarse = np.asarray(grid.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float)
    fine = rng.normal(1, 0.05, (SIDE, SIDE))
    return (coarse * fine)[..., None]


def sample_light(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a gradient of brightness (SIDE, SIDE, 1), brighter at the top."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
    brightness = rng.uniform(0.8, 1.05)
    gradient = 1 - rng.uniform(0.2, 0.6) * y + rng.uniform(-0.4, 0.4) * x
    return (brightness * gradient)[..., None]


def recolour(rng: np.random.Generator, drawing: NDArray[np.float64], colour: Colour) -> Image.Image:
    """Return a drawing in another colour and light: RGBA, cropped to what is visible."""
    rgb = drawing[..., :3]
    alpha = drawing[..., 3]
    luminance = rgb.mean(2, keepdims=True)
    luminance /= np.average(luminance[..., 0], weights=alpha)
    tint = np.array(colour) / 255 * rng.normal(1, 0.06, 3)
    coloured = 0.7 * tint * luminance**0.7 + 0.3 * rgb
    light = sample_light(rng)
    grain = sample_grain(rng)
    pixels = np.dstack([coloured * light * grain, alpha])
    ys, xs = np.nonzero(alpha >= 0.5)
    rgba = (pixels * 255).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(rgba[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=60, help="cut-outs of each category")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for category, names in DRAWINGS.items():
        folder = args.out / category
        folder.mkdir(parents=True, exist_ok=True)
        drawings = [read_drawing(args.sets, name) for name in names]
        colours = list(COLOURS[category].items())
        for i in range(args.count):
            word, colour = colours[i % len(colours)]
            drawing = drawings[i // len(colours) % len(drawings)]
            image = recolour(np.random.default_rng([args.seed, i]), drawing, colour)
            path = folder / f"{word}_{args.seed}_{i:04d}.webp"
            image.save(path, quality=82, alpha_quality=90, method=6)


if __name__ == "__main__":
    main()
