"""What a camera does to a finished picture: blur, exposure, white balance, noise, JPEG. Nothing moves, so the labels stay.

Light adds up in linear values, not in the values of an sRGB file, so what happens to light (blur, exposure, white balance, shot
noise) is computed there, by the transfer function of IEC 61966-2-1; what happens to the file (noise in grey levels, JPEG) is not.
"""

import io
from abc import abstractmethod
from typing import Annotated, Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from synthgen.randomness import child_sequence
from synthgen.spec import SpecModel

Pixels = NDArray[np.uint8]  # (H, W, 3), sRGB
Light = NDArray[np.float32]  # (H, W, 3), linear; 0 black, 1 white


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int | float) else value


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"[{value[0]:g}, {value[1]:g}] must be [least, greatest]")
    return value


PAIR, ORDERED = BeforeValidator(_pair), AfterValidator(_ordered)  # one number stands for both ends
Sigma = Annotated[float, Field(ge=0.1, le=50)]
Length = Annotated[float, Field(ge=1, le=200)]
Angle = Annotated[float, Field(ge=0, le=180)]
Stops = Annotated[float, Field(ge=-6, le=6)]
Electrons = Annotated[float, Field(ge=5, le=1e6)]
Grey = Annotated[float, Field(ge=0, le=128)]
Quality = Annotated[int, Field(ge=1, le=100)]


class Effect(SpecModel):
    """One thing that befalls some of the pictures; its ranges are drawn from for each of these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    probability: float = Field(0.5, ge=0, le=1, description="share of the images that have it")

    @classmethod
    def parameters(cls) -> list[str]:
        """What is drawn for a picture."""
        return [name for name in cls.model_fields if name != "probability"]

    def draw(self, rng: np.random.Generator) -> dict[str, float] | None:
        """The parameters for one picture; None if it is spared."""
        if rng.random() >= self.probability:
            return None
        return {
            name: round(float(rng.uniform(*getattr(self, name))), 3) for name in self.parameters()
        }


class OfLight(Effect):
    """An effect on light."""

    @abstractmethod
    def apply(self, light: Light, rng: np.random.Generator, **parameters: float) -> Light:
        """The picture with the effect; values above 1 are cut off when all is done."""


class OfFile(Effect):
    """An effect on the file."""

    @abstractmethod
    def apply(self, pixels: Pixels, rng: np.random.Generator, **parameters: float) -> Pixels:
        """The picture with the effect."""


class GaussianBlur(OfLight):
    """Out of focus: a Gaussian."""

    sigma: Annotated[tuple[Sigma, Sigma], PAIR, ORDERED] = Field((0.5, 2.0), description="px")

    def apply(self, light: Light, rng: np.random.Generator, **parameters: float) -> Light:
        from scipy.ndimage import gaussian_filter

        sigma = parameters["sigma"]
        blurred: Light = gaussian_filter(light, (sigma, sigma, 0), mode="nearest")
        return blurred


class MotionBlur(OfLight):
    """The camera moved along a line while the shutter was open."""

    length: Annotated[tuple[Length, Length], PAIR, ORDERED] = Field(
        (4.0, 12.0), description="of the line, px"
    )
    angle: Annotated[tuple[Angle, Angle], PAIR, ORDERED] = Field(
        (0.0, 180.0), description="degrees, counter-clockwise from the x axis"
    )

    def apply(self, light: Light, rng: np.random.Generator, **parameters: float) -> Light:
        kernel = line(parameters["length"], parameters["angle"])
        margin, (height, width, _) = len(kernel) // 2, light.shape
        padded = np.pad(light, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
        result = np.zeros_like(light)
        for y, x in np.argwhere(kernel):
            result += kernel[y, x] * padded[y : y + height, x : x + width]
        return result


class Exposure(OfLight):
    """Too little or too much light."""

    stops: Annotated[tuple[Stops, Stops], PAIR, ORDERED] = Field(
        (-1.0, 1.0), description="1 is twice the light"
    )

    def apply(self, light: Light, rng: np.random.Generator, **parameters: float) -> Light:
        return light * np.float32(2 ** parameters["stops"])


class WhiteBalance(OfLight):
    """Red against blue."""

    warmth: Annotated[tuple[Stops, Stops], PAIR, ORDERED] = Field(
        (-0.5, 0.5), description="stops of red over blue; above 0 warmer"
    )

    def apply(self, light: Light, rng: np.random.Generator, **parameters: float) -> Light:
        gain = 2 ** (parameters["warmth"] / 2)
        return light * np.array([gain, 1, 1 / gain], np.float32)


class PoissonNoise(OfLight):
    """Shot noise: a pixel counts electrons, so the deviation is the root of their number."""

    electrons: Annotated[tuple[Electrons, Electrons], PAIR, ORDERED] = Field(
        (200.0, 2000.0), description="of a white pixel; fewer: noisier"
    )

    def apply(self, light: Light, rng: np.random.Generator, **parameters: float) -> Light:
        electrons = parameters["electrons"]
        return (rng.poisson(light.clip(0, 1) * electrons) / electrons).astype(np.float32)


class GaussianNoise(OfFile):
    """The same noise everywhere, as of a sensor's electronics."""

    sigma: Annotated[tuple[Grey, Grey], PAIR, ORDERED] = Field(
        (2.0, 10.0), description="grey levels of 255"
    )

    def apply(self, pixels: Pixels, rng: np.random.Generator, **parameters: float) -> Pixels:
        noise = rng.standard_normal(pixels.shape, np.float32) * np.float32(parameters["sigma"])
        return np.rint(pixels + noise).clip(0, 255).astype(np.uint8)


class Jpeg(OfFile):
    """Stored as JPEG once; what the dataset stores comes after it."""

    quality: Annotated[tuple[Quality, Quality], PAIR, ORDERED] = Field(
        (30, 90), description="whole numbers are drawn"
    )

    def draw(self, rng: np.random.Generator) -> dict[str, float] | None:
        drawn = super().draw(rng)
        return drawn and {"quality": float(round(drawn["quality"]))}

    def apply(self, pixels: Pixels, rng: np.random.Generator, **parameters: float) -> Pixels:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=int(parameters["quality"]))
        return np.array(Image.open(buffer))


class CameraSpec(SpecModel):
    """Effects in the order in which light meets them; each has a probability and ranges."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gaussian_blur: GaussianBlur | None = Field(None, description="out of focus: sigma")
    motion_blur: MotionBlur | None = Field(None, description="moved: length, angle")
    exposure: Exposure | None = Field(None, description="too dark or too bright: stops")
    white_balance: WhiteBalance | None = Field(None, description="too cold or too warm: warmth")
    poisson_noise: PoissonNoise | None = Field(None, description="shot noise: electrons")
    gaussian_noise: GaussianNoise | None = Field(None, description="noise: sigma")
    jpeg: Jpeg | None = Field(None, description="compressed: quality")

    def effects(self) -> dict[str, OfLight | OfFile]:
        """Those that the job asks for, by name, in order."""
        return {
            name: effect
            for name in type(self).model_fields
            if (effect := getattr(self, name)) is not None
        }

    def __call__(
        self, pixels: Pixels, seed: np.random.SeedSequence
    ) -> tuple[Pixels, dict[str, float | None]]:
        """A picture as this camera takes it: a function of the picture and the seed.

        Each effect has randomness of its own, named by the effect: another effect, asked for too, changes nothing for this one.

        Args:
            pixels: (H, W, 3) uint8, sRGB.

        Returns:
            The picture, same shape and type; and `camera_EFFECT_PARAMETER` of all effects asked for, None of a spared picture.
        """
        light: Light | None = None
        record: dict[str, float | None] = {}
        for name, effect in self.effects().items():
            rng = np.random.default_rng(child_sequence(seed, crc32(name.encode())))
            drawn = effect.draw(rng)
            record |= {
                f"camera_{name}_{key}": None if drawn is None else drawn[key]
                for key in effect.parameters()
            }
            if drawn is None:
                continue
            if isinstance(effect, OfLight):
                light = effect.apply(to_light(pixels) if light is None else light, rng, **drawn)
            else:
                pixels, light = (
                    effect.apply(pixels if light is None else to_pixels(light), rng, **drawn),
                    None,
                )
        return pixels if light is None else to_pixels(light), record


def to_light(pixels: Pixels) -> Light:
    """sRGB to linear light (IEC 61966-2-1)."""
    value = np.arange(256) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return linear.astype(np.float32)[pixels]


def to_pixels(light: Light) -> Pixels:
    """Linear light to sRGB (IEC 61966-2-1), cut off at black and white."""
    light = light.clip(0, 1)
    value = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(value * 255).astype(np.uint8)


def line(length: float, angle: float) -> NDArray[np.float32]:
    """A line through the middle of an odd square of cells, drawn with weights that sum to 1.

    Args:
        length: px.
        angle: degrees, counter-clockwise from the x axis.
    """
    reach = int(np.ceil(length / 2)) + 1
    t = np.linspace(-length / 2, length / 2, 8 * int(np.ceil(length)) + 1)
    x, y = reach + t * np.cos(np.deg2rad(angle)), reach - t * np.sin(np.deg2rad(angle))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    for right, down in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = np.abs(1 - right - (x - left)) * np.abs(1 - down - (y - top))
        np.add.at(kernel, (top + down, left + right), weight)
    return (kernel / kernel.sum()).astype(np.float32)
