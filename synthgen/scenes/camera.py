"""Effects of a camera on a finished image: blur, exposure, white balance, noise and JPEG.

Nothing moves, so the labels stay the same.

Light is additive in linear values, not in the values of an sRGB file. Effects on light (blur,
exposure, white balance, shot noise) are therefore computed in linear values, with the transfer
function of IEC 61966-2-1. Effects on the file (noise in grey levels, JPEG) are not.
"""

import io
from abc import abstractmethod
from typing import Annotated, Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from synthgen.randomness import spawn_sequence
from synthgen.spec import SpecModel

Pixels = NDArray[np.uint8]  # (H, W, 3), sRGB
Light = NDArray[np.float32]  # (H, W, 3), linear; 0 black, 1 white


def _as_pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int | float) else value


def _check_order(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"[{value[0]:g}, {value[1]:g}] must be [least, greatest]")
    return value


PAIR = BeforeValidator(_as_pair)  # one number stands for both ends of a range
ORDERED = AfterValidator(_check_order)
Sigma = Annotated[float, Field(ge=0.1, le=50)]
Length = Annotated[float, Field(ge=1, le=200)]
Angle = Annotated[float, Field(ge=0, le=180)]
Stops = Annotated[float, Field(ge=-6, le=6)]
Electrons = Annotated[float, Field(ge=5, le=1e6)]
Grey = Annotated[float, Field(ge=0, le=128)]
Quality = Annotated[int, Field(ge=1, le=100)]


class Effect(SpecModel):
    """An effect that a share of the images has. Its parameters are sampled for each such image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    probability: float = Field(0.5, ge=0, le=1, description="Share of the images with the effect.")

    @classmethod
    def parameters(cls) -> list[str]:
        """Return the names of the parameters that are sampled for an image."""
        return [name for name in cls.model_fields if name != "probability"]

    def draw(self, rng: np.random.Generator) -> dict[str, float] | None:
        """Sample the parameters for one image; None if the image does not have the effect."""
        if rng.random() >= self.probability:
            return None
        sampled = {}
        for name in self.parameters():
            least, greatest = getattr(self, name)
            sampled[name] = round(float(rng.uniform(least, greatest)), 3)
        return sampled


class LightEffect(Effect):
    """An effect on light."""

    @abstractmethod
    def apply(self, light: Light, rng: np.random.Generator, **parameters: float) -> Light:
        """Return the image with the effect; values above 1 are clipped after all effects."""


class FileEffect(Effect):
    """An effect on the file."""

    @abstractmethod
    def apply(self, pixels: Pixels, rng: np.random.Generator, **parameters: float) -> Pixels:
        """Return the image with the effect."""


class GaussianBlur(LightEffect):
    """The image is out of focus, which is a Gaussian blur."""

    sigma: Annotated[tuple[Sigma, Sigma], PAIR, ORDERED] = Field(
        (0.5, 2.0), description="Standard deviation in px."
    )

    def apply(self, light: Light, rng: np.random.Generator, **parameters: float) -> Light:
        from scipy.ndimage import gaussian_filter

        sigma = parameters["sigma"]
        blurred: Light = gaussian_filter(light, (sigma, sigma, 0), mode="nearest")
        return blurred


class MotionBlur(LightEffect):
    """The camera moved along a line while the shutter was open."""

    length: Annotated[tuple[Length, Length], PAIR, ORDERED] = Field(
        (4.0, 12.0), description="Length of the line in px."
    )
    angle: Annotated[tuple[Angle, Angle], PAIR, ORDERED] = Field(
        (0.0, 180.0), description="Angle of the line in degrees, counter-clockwise from the x axis."
    )

    def apply(self, light: Light, rng: np.random.Generator, **parameters: float) -> Light:
        kernel = draw_line_kernel(parameters["length"], parameters["angle"])
        margin = len(kernel) // 2
        height, width = light.shape[:2]
        padded = np.pad(light, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
        result = np.zeros_like(light)
        for y, x in np.argwhere(kernel):
            result += kernel[y, x] * padded[y : y + height, x : x + width]
        return result


class Exposure(LightEffect):
    """The image is too dark or too bright."""

    stops: Annotated[tuple[Stops, Stops], PAIR, ORDERED] = Field(
        (-1.0, 1.0), description="Change of the exposure in stops; 1 doubles the light."
    )

    def apply(self, light: Light, rng: np.random.Generator, **parameters: float) -> Light:
        return light * np.float32(2 ** parameters["stops"])


class WhiteBalance(LightEffect):
    """The image is too cold or too warm: blue and red are out of balance."""

    warmth: Annotated[tuple[Stops, Stops], PAIR, ORDERED] = Field(
        (-0.5, 0.5), description="Ratio of red to blue in stops; above 0 is warmer."
    )

    def apply(self, light: Light, rng: np.random.Generator, **parameters: float) -> Light:
        gain = 2 ** (parameters["warmth"] / 2)
        return light * np.array([gain, 1, 1 / gain], np.float32)


class PoissonNoise(LightEffect):
    """Shot noise: a pixel counts electrons, so its deviation is the square root of their number."""

    electrons: Annotated[tuple[Electrons, Electrons], PAIR, ORDERED] = Field(
        (200.0, 2000.0),
        description="Number of electrons of a white pixel; fewer electrons are noisier.",
    )

    def apply(self, light: Light, rng: np.random.Generator, **parameters: float) -> Light:
        electrons = parameters["electrons"]
        return (rng.poisson(light.clip(0, 1) * electrons) / electrons).astype(np.float32)


class GaussianNoise(FileEffect):
    """Noise of the same strength everywhere, such as that of a sensor's electronics."""

    sigma: Annotated[tuple[Grey, Grey], PAIR, ORDERED] = Field(
        (2.0, 10.0), description="Standard deviation in grey levels of 255."
    )

    def apply(self, pixels: Pixels, rng: np.random.Generator, **parameters: float) -> Pixels:
        noise = rng.standard_normal(pixels.shape, np.float32) * np.float32(parameters["sigma"])
        return np.rint(pixels + noise).clip(0, 255).astype(np.uint8)


class Jpeg(FileEffect):
    """The image is compressed once as JPEG, before the dataset stores it in its own format."""

    quality: Annotated[tuple[Quality, Quality], PAIR, ORDERED] = Field(
        (30, 90), description="JPEG quality; whole numbers are sampled."
    )

    def draw(self, rng: np.random.Generator) -> dict[str, float] | None:
        sampled = super().draw(rng)
        if sampled is None:
            return None
        return {"quality": float(round(sampled["quality"]))}

    def apply(self, pixels: Pixels, rng: np.random.Generator, **parameters: float) -> Pixels:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=int(parameters["quality"]))
        return np.array(Image.open(buffer))


class CameraSpec(SpecModel):
    """The effects of a camera, in the order in which they affect light and file.

    Each effect has a probability and a range for each of its parameters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gaussian_blur: GaussianBlur | None = Field(
        None, description="Blur of an image out of focus: sigma."
    )
    motion_blur: MotionBlur | None = Field(
        None, description="Blur of a moving camera: length, angle."
    )
    exposure: Exposure | None = Field(
        None, description="Exposure that is too dark or too bright: stops."
    )
    white_balance: WhiteBalance | None = Field(
        None, description="White balance that is too cold or too warm: warmth."
    )
    poisson_noise: PoissonNoise | None = Field(None, description="Shot noise: electrons.")
    gaussian_noise: GaussianNoise | None = Field(None, description="Noise of the sensor: sigma.")
    jpeg: Jpeg | None = Field(None, description="JPEG compression: quality.")

    def effects(self) -> dict[str, LightEffect | FileEffect]:
        """Return the effects that the job sets, by name and in order."""
        effects = {}
        for name in type(self).model_fields:
            effect = getattr(self, name)
            if effect is not None:
                effects[name] = effect
        return effects

    def __call__(
        self, pixels: Pixels, seed: np.random.SeedSequence
    ) -> tuple[Pixels, dict[str, float | None]]:
        """Return the image with the effects of this camera: a function of image and seed.

        Each effect has its own random numbers, which depend on its name, so that adding an effect
        does not change those of the others.

        Args:
            pixels: (H, W, 3) uint8, sRGB.
            seed: randomness of the image.

        Returns:
            The image, with the same shape and dtype; and `camera_EFFECT_PARAMETER` of all effects
            that the job sets, None where the image does not have the effect.
        """
        light: Light | None = None  # the image in linear values; None while `pixels` is the image
        record: dict[str, float | None] = {}
        for name, effect in self.effects().items():
            rng = np.random.default_rng(spawn_sequence(seed, crc32(name.encode())))
            sampled = effect.draw(rng)
            for key in effect.parameters():
                record[f"camera_{name}_{key}"] = None if sampled is None else sampled[key]
            if sampled is None:
                continue
            if isinstance(effect, LightEffect):
                if light is None:
                    light = to_light(pixels)
                light = effect.apply(light, rng, **sampled)
            else:
                if light is not None:
                    pixels = to_pixels(light)
                    light = None
                pixels = effect.apply(pixels, rng, **sampled)
        if light is not None:
            pixels = to_pixels(light)
        return pixels, record


def to_light(pixels: Pixels) -> Light:
    """Convert sRGB to linear light (IEC 61966-2-1)."""
    value = np.arange(256) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return linear.astype(np.float32)[pixels]


def to_pixels(light: Light) -> Pixels:
    """Convert linear light to sRGB (IEC 61966-2-1), clipped to black and white."""
    light = light.clip(0, 1)
    value = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(value * 255).astype(np.uint8)


def draw_line_kernel(length: float, angle: float) -> NDArray[np.float32]:
    """Return a square kernel of odd size with a line through its centre; its weights sum to 1.

    Args:
        length: length of the line in px.
        angle: angle of the line in degrees, counter-clockwise from the x axis.
    """
    reach = int(np.ceil(length / 2)) + 1
    t = np.linspace(-length / 2, length / 2, 8 * int(np.ceil(length)) + 1)
    x = reach + t * np.cos(np.deg2rad(angle))
    y = reach - t * np.sin(np.deg2rad(angle))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    left = np.floor(x).astype(int)
    top = np.floor(y).astype(int)
    for right, down in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = np.abs(1 - right - (x - left)) * np.abs(1 - down - (y - top))
        np.add.at(kernel, (top + down, left + right), weight)
    return (kernel / kernel.sum()).astype(np.float32)
