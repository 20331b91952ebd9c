"""Make the seamless grounds that ship with the package: grass from a dm-control wheel's texture, the others from noise.

Not needed at run time. To run it: unpack the dm-control 1.0.50 wheel, then
`python -m synthgen.assets.render_grounds UNPACKED_WHEEL OUT --seed 0`. The first word of a file's name is what a
prompt calls it: `grass_0_00.webp` is used for "a field of grass".
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

SIDE = 512
GRASS = "dm_control/locomotion/arenas/assets/outdoor_natural/OutdoorGrassFloorD.png"

# Ground: (dark colour, light colour, exponent of the 1/f spectrum; smaller is grainier).
NOISE_GROUNDS = {
    "gravel": ((92, 88, 84), (178, 172, 164), 0.55),
    "sand": ((186, 158, 112), (224, 200, 156), 0.9),
    "soil": ((70, 50, 34), (124, 94, 66), 0.8),
    "snow": ((214, 222, 232), (250, 251, 253), 1.3),
    "concrete": ((128, 128, 126), (172, 171, 168), 1.1),
}


def spectral_noise(rng: np.random.Generator, exponent: float) -> NDArray[np.float64]:
    """Seamless noise (SIDE, SIDE) in [0, 1] with amplitude spectrum 1/f^exponent."""
    f = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    f[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.normal(size=(SIDE, SIDE))) / f**exponent
    noise = np.fft.irfft2(spectrum, s=(SIDE, SIDE))
    low, high = np.percentile(noise, [1, 99])
    return np.clip((noise - low) / (high - low), 0, 1)


def noise_ground(rng: np.random.Generator, name: str) -> Image.Image:
    dark, light, exponent = NOISE_GROUNDS[name]
    t = spectral_noise(rng, exponent * rng.uniform(0.9, 1.1))[..., None]
    colour = np.array(dark) * (1 - t) + np.array(light) * t
    tint = rng.normal(1, 0.03, 3) * rng.uniform(0.88, 1.08)
    return Image.fromarray(np.clip(colour * tint, 0, 255).astype(np.uint8))


def grass_ground(rng: np.random.Generator, texture: Image.Image) -> Image.Image:
    """The wheel's lawn in another light: rolled, brightened, less or more yellow."""
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
    parser.add_argument("--each", type=int, default=2, help="pictures of each other ground")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    texture = Image.open(args.wheel / GRASS).convert("RGB")
    grounds = [("grass", grass_ground(rng, texture)) for _ in range(args.grass)]
    grounds += [(name, noise_ground(rng, name)) for name in NOISE_GROUNDS for _ in range(args.each)]
    for i, (name, image) in enumerate(grounds):
        image.save(args.out / f"{name}_{args.seed}_{i:02d}.webp", quality=72, method=6)


if __name__ == "__main__":
    main()
