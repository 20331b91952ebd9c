"""Make the cut-outs of cats, balls and trees that ship with the package, from emoji drawings.

Not needed at run time. To run it: `npm pack @iconify-json/noto @iconify-json/fluent-emoji`, unpack each into a folder
of its own name below SETS, `pip install resvg-py`, then
`python -m synthgen.assets.render_sprites SETS OUT --count 60 --seed 0`.
A drawing keeps its luminance and takes one of the colours that a caption names, light from one side, and grain.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import resvg_py  # type: ignore[import-not-found, import-untyped, unused-ignore]
from numpy.typing import NDArray
from PIL import Image

SIDE = 192
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


def draw(sets: Path, name: str) -> NDArray[np.float64]:
    """One drawing, RGBA (SIDE, SIDE, 4) in [0, 1]."""
    folder, icon = name.split("/")
    data = json.loads((sets / folder / "package/icons.json").read_text())
    side, body = data["icons"][icon].get("height", data["height"]), data["icons"][icon]["body"]
    xmlns = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    png = resvg_py.svg_to_bytes(
        svg_string=f'<svg {xmlns} viewBox="0 0 {side} {side}">{body}</svg>', width=SIDE, height=SIDE
    )
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"), float) / 255


def grain(rng: np.random.Generator) -> NDArray[np.float64]:
    """Coarse and fine noise (SIDE, SIDE, 1) about 1."""
    coarse = Image.fromarray(rng.normal(1, 0.08, (24, 24)).astype(np.float32)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    return (np.asarray(coarse, float) * rng.normal(1, 0.05, (SIDE, SIDE)))[..., None]


def light(rng: np.random.Generator) -> NDArray[np.float64]:
    """A slope of brightness (SIDE, SIDE, 1), lighter above."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
    return (rng.uniform(0.8, 1.05) * (1 - rng.uniform(0.2, 0.6) * y + rng.uniform(-0.4, 0.4) * x))[
        ..., None
    ]


def paint(rng: np.random.Generator, drawing: NDArray[np.float64], colour: Colour) -> Image.Image:
    """The drawing in another colour and light: RGBA, cropped to what is visible."""
    rgb, alpha = drawing[..., :3], drawing[..., 3]
    luminance = rgb.mean(2, keepdims=True)
    luminance /= np.average(luminance[..., 0], weights=alpha)
    tint = np.array(colour) / 255 * rng.normal(1, 0.06, 3)
    painted = 0.7 * tint * luminance**0.7 + 0.3 * rgb
    pixels = np.dstack([painted * light(rng) * grain(rng), alpha])
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
        (args.out / category).mkdir(parents=True, exist_ok=True)
        drawings, colours = [draw(args.sets, n) for n in names], list(COLOURS[category].items())
        for i in range(args.count):
            word, colour = colours[i % len(colours)]
            rng = np.random.default_rng([args.seed, i])
            image = paint(rng, drawings[i // len(colours) % len(drawings)], colour)
            image.save(
                args.out / category / f"{word}_{args.seed}_{i:04d}.webp",
                quality=82,
                alpha_quality=90,
                method=6,
            )


if __name__ == "__main__":
    main()
