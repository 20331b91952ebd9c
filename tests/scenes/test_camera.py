"""Camera effects, each compared with its definition, and all as functions of the seed."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from scipy.ndimage import center_of_mass

from synthgen.scenes.camera import CameraSpec, draw_line_kernel, to_light, to_pixels

SEED = np.random.SeedSequence(7, spawn_key=(3, 5, 0))
NOISE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
ALL = {name: {"probability": 1} for name in CameraSpec.model_fields}


def shoot(
    name: str, pixels: np.ndarray = NOISE, **ranges: object
) -> tuple[np.ndarray, dict[str, float | None]]:
    spec = CameraSpec.model_validate({name: {"probability": 1, **ranges}})
    return spec(pixels, SEED)


def grey(value: int, side: int = 64) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def test_conversion_to_light_and_back_is_exact() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    np.testing.assert_array_equal(to_pixels(to_light(values)), values)
    # half the light is grey 188 in sRGB
    assert to_light(grey(188))[0, 0, 0] == pytest.approx(0.5028, abs=1e-4)


def test_a_stop_doubles_the_light() -> None:
    brighter, record = shoot("exposure", grey(100), stops=1)
    np.testing.assert_allclose(to_light(brighter), 2 * to_light(grey(100)), rtol=0.01)
    assert record == {"camera_exposure_stops": 1}
    assert shoot("exposure", grey(250), stops=3)[0].min() == 255


def test_warmth_is_stops_of_red_over_blue() -> None:
    light = to_light(shoot("white_balance", grey(128), warmth=1)[0])[0, 0]
    assert np.log2(light[0] / light[2]) == pytest.approx(1, abs=0.03)
    assert light[1] == pytest.approx(to_light(grey(128))[0, 0, 1])


def test_a_blurred_point_is_a_gaussian() -> None:
    point = grey(0, 33)
    point[16, 16] = 255
    light = to_light(shoot("gaussian_blur", point, sigma=1.5)[0])[..., 0].astype(np.float64)
    y, x = np.mgrid[-16:17, -16:17]
    expected = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    np.testing.assert_allclose(light, expected / expected.sum(), atol=1.5e-3)


@given(st.floats(1, 60), st.floats(0, 180))
@settings(max_examples=40, deadline=None)
def test_a_line_is_centred_and_has_its_length(length: float, angle: float) -> None:
    kernel = draw_line_kernel(length, angle).astype(np.float64)
    middle = len(kernel) // 2
    assert kernel.sum() == pytest.approx(1, abs=1e-4)
    assert center_of_mass(kernel) == pytest.approx((middle, middle), abs=1e-3)
    y, x = np.mgrid[-middle : middle + 1, -middle : middle + 1]
    along = x * np.cos(np.deg2rad(angle)) - y * np.sin(np.deg2rad(angle))  # y points down
    variance = length**2 / 12  # of a line of even weight
    assert (kernel * along**2).sum() == pytest.approx(variance, rel=0.1, abs=0.6)
    across = x * np.sin(np.deg2rad(angle)) + y * np.cos(np.deg2rad(angle))
    assert (kernel * across**2).sum() < 0.5


def test_shot_noise_grows_with_the_root_of_the_light() -> None:
    for value in (60, 188):
        light = to_light(shoot("poisson_noise", grey(value, 160), electrons=400)[0]).astype(
            np.float64
        )
        mean = float(to_light(grey(value))[0, 0, 0])
        assert light.mean() == pytest.approx(mean, rel=0.02)
        assert light.std() == pytest.approx(np.sqrt(mean / 400), rel=0.05)


def test_gaussian_noise_has_its_deviation() -> None:
    noisy = shoot("gaussian_noise", grey(128, 160), sigma=8)[0].astype(float)
    assert (noisy.mean(), noisy.std()) == pytest.approx((128, 8), rel=0.02)


def test_jpeg_compression_is_that_of_pillow() -> None:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "JPEG", quality=25)
    got, record = shoot("jpeg", quality=25)
    np.testing.assert_array_equal(got, np.array(Image.open(buffer)))
    assert record == {"camera_jpeg_quality": 25}


def test_effects_depend_only_on_the_seed_and_stay_within_their_ranges() -> None:
    spec = CameraSpec.model_validate(ALL)
    first, record = spec(NOISE, SEED)
    again, same = spec(NOISE, SEED)
    np.testing.assert_array_equal(first, again)
    assert record == same
    assert first.shape == NOISE.shape
    assert first.dtype == np.uint8
    for index in range(60):
        _, record = spec(NOISE[:2, :2], np.random.SeedSequence(7, spawn_key=(index, 5, 0)))
        for name, effect in spec.effects().items():
            for key in effect.parameters():
                least, greatest = getattr(effect, key)
                value = record[f"camera_{name}_{key}"]
                assert value is not None
                assert least <= value <= greatest


def test_an_effect_does_not_depend_on_other_effects() -> None:
    alone = CameraSpec.model_validate({"jpeg": {"probability": 1}})(NOISE, SEED)[1]
    with_all = CameraSpec.model_validate(ALL)(NOISE, SEED)[1]
    assert alone.items() <= with_all.items()


def test_the_probability_is_the_share_of_images() -> None:
    spec = CameraSpec.model_validate({"exposure": {"probability": 0.3}})
    records = [
        spec(NOISE[:1, :1], np.random.SeedSequence(0, spawn_key=(i, 5, 0)))[1] for i in range(1000)
    ]
    assert sum(r["camera_exposure_stops"] is not None for r in records) == pytest.approx(
        300, abs=60
    )
    untouched, record = CameraSpec.model_validate({"jpeg": {"probability": 0}})(NOISE, SEED)
    assert untouched is NOISE
    assert record == {"camera_jpeg_quality": None}


@pytest.mark.parametrize(
    "wrong",
    [
        {"exposure": {"stops": [1, -1]}},
        {"jpeg": {"quality": [0, 50]}},
        {"jpeg": {"quality": 30.5}},
        {"gaussian_noise": {"sigma": -1}},
        {"exposure": {"probability": 2}},
        {"motion_blur": {"angle": 270}},
        {"sepia": {}},
    ],
)
def test_wrong_values_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CameraSpec.model_validate(wrong)
