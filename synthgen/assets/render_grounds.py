"""Make the seamless backgrounds that ship with the package.

Grass is made from a texture of dm-control, the others from noise. Not needed at run time. To run
it: unpack the dm-control 1.0.50 wheel, then
`python -m synthgen.assets.render_grounds UNPACKED_WHEEL OUT --seed 0`. The first word of a file
name is its name in prompts: `grass_0_00.webp` is used for "a field of grass".
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

SIDE = 512  # px
GRASS = "dm_control/locomotion/arenas/assets/outdoor_natural/OutdoorGrassFloorD.png"

# Dark colour, light colour, and exponent of the 1/f spectrum; a smaller exponent is grainier.
NOISE_BACKGROUNDS = {
    "gravel": ((92, 88, 84), (178, 172, 164), 0.55),
    "sand": ((186, 158, 112), (224, 200, 156), 0.9),
    "soil": ((70, 50, 34), (124, 94, 66), 0.8),
    "snow": ((214, 222, 232), (250, 251, 253), 1.3),
    "concrete": ((128, 128, 126), (172, 171, 168), 1.1),
}


def make_spectral_noise(rng: np.random.Generator, exponent: float) -> NDArray[np.float64]:
    """Return seamless noise (SIDE, SIDE) in [0, 1] with the amplitude spectrum 1/f^exponent."""
    f = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    f[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.normal(size=(SIDE, SIDE))) / f**exponent
    noise = np.fft.irfft2(spectrum, s=(SIDE, SIDE))
    low, high = np.percentile(noise, [1, 99])
    return np.clip((noise - low) / (high - low), 0, 1)


def render_noise_background(rng: np.random.Generator, name: str) -> Image.Image:
    """Return a background of noise between the two colours of its name."""
    dark, light, exponent = NOISE_BACKGROUNDS[name]
    t = make_spectral_noise(rng, exponent * rng.uniform(0.9, 1.1))[..., None]
    colour = np.array(dark) * (1 - t) + np.array(light) * t
    tint = rng.normal(1, 0.03, 3) * rng.uniform(0.88, 1.08)
    return Image.fromarray(np.clip(colour * tint, 0, 255).astype(np.uint8))


def render_grass_background(rng: np.random.Generator, texture: Image.Image) -> Image.Image:
    """Return the grass texture in another light: shifted, brightened, and more or less yellow."""
    pixels = np.roll(np.asarray(texture, float), rng.integers(0, SIDE, 2), (0, 1))
    tint = np.array([rng.uniform(0.75, 1.25), rng.uniform(0.92, 1.08), rng.uniform(0.8, 1.8)])
    image = Image.fromarray(np.clip(pixels * tint, 0, 255).astype(np.uint8))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.9, 1.35))
    return ImageEnhance.Contrast(image).enhance(rng.uniform(0.6, 1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grass", type=int, default=6)
    parser.add_argument("--each", type=int, default=2, help="images of each other background")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    texture = Image.open(args.wheel / GRASS).convert("RGB")
    backgrounds: list[tuple[str, Image.Image]] = []
    for _ in range(args.grass):
        backgrounds.append(("grass", render_grass_background(rng, texture)))
    for name in NOISE_BACKGROUNDS:
        for _ in range(args.each):
            backgrounds.append((name, render_noise_background(rng, name)))
    for i, (name, image) in enumerate(backgrounds):
        image.save(args.out / f"{name}_{args.seed}_{i:02d}.webp", quality=72, method=6)


if __name__ == "__main__":
    main()
