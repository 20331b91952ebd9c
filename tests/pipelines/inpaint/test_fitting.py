"""The object in its crop, and its paste into the box."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from synthgen.pipelines.inpaint.crops import Crop
from synthgen.pipelines.inpaint.fitting import (
    DILATION,
    FEATHER,
    find_object,
    fit_object,
    measure_extent,
    resample,
)

SIDE = 128


def make_crop(box: tuple[float, float, float, float] = (20, 24, 84, 72)) -> Crop:
    """Return a crop of a canvas of 200 x 160 px, enlarged 1.28 times."""
    asked = np.array(box, np.float64)
    window = (0, 0, 100, 100)
    return Crop(3, asked, asked, window, (SIDE, SIDE), window)


def make_texture(seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(size=(*size, 3))
    smooth = ndimage.gaussian_filter(noise, (1, 1, 0))
    return np.clip(120 + 60 * smooth, 0, 255).astype(np.uint8)


def draw_ellipse(box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = box
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    u = (x - (x0 + x1) / 2) / ((x1 - x0) / 2)
    v = (y - (y0 + y1) / 2) / ((y1 - y0) / 2)
    return np.asarray(u**2 + v**2 < 1)


def test_an_object_is_what_differs() -> None:
    """Another texture is no object, nor is a small spot."""
    before = make_texture()
    ellipse = draw_ellipse((30, 40, 100, 90))
    spot = draw_ellipse((4, 4, 12, 12))
    after = np.where((ellipse | spot)[..., None], [230, 225, 220], make_texture(1))
    mask = find_object(make_crop(), before, after.astype(np.uint8))
    assert mask is not None
    assert (mask ^ ellipse).sum() / ellipse.sum() < 0.15
    assert np.abs(measure_extent(mask) - [30, 40, 100, 90]).max() <= 3


@pytest.mark.parametrize(
    "ellipse",
    [(60, 60, 70, 70), (10, 60, 120, 76)],
    ids=["far smaller than its box", "far flatter than its box"],
)
def test_what_cannot_be_the_object_is_not_found(ellipse: tuple[int, int, int, int]) -> None:
    before = make_texture()
    after = np.where(draw_ellipse(ellipse)[..., None], 255, before).astype(np.uint8)
    assert find_object(make_crop(), before, after) is None


def test_no_object_is_found_where_nothing_changed() -> None:
    assert find_object(make_crop(), make_texture(), make_texture(1)) is None


@pytest.mark.parametrize("box", [(20, 24, 84, 72), (0, 0, 40, 30), (130.4, 90.2, 200, 160)])
def test_the_object_fills_its_box(box: tuple[float, float, float, float]) -> None:
    canvas = make_texture(2, (160, 200))
    before = canvas.copy()
    mask = draw_ellipse((30, 40, 100, 90))
    after = np.where(mask[..., None], [230, 225, 220], make_texture()).astype(np.uint8)
    cutout = fit_object(make_crop(box), after, mask, measure_extent(mask), (200, 160))
    cutout.paste(canvas)
    region = (cutout.rows, cutout.columns)
    whole = np.zeros((160, 200), bool)
    whole[region] = cutout.covered
    assert np.abs(measure_extent(whole) - box).max() <= 1
    inside = ndimage.binary_erosion(whole, iterations=2)
    assert np.abs(canvas[inside] - np.array([230.0, 225, 220])).max() < 12
    outside = np.ones((160, 200), bool)
    outside[region] = False
    np.testing.assert_array_equal(canvas[outside], before[outside])
    assert not np.array_equal(canvas, before)


def test_the_blend_and_the_warp_agree_with_float64() -> None:
    """The reference samples the crop bilinearly on a grid of 20 x 20 samples a pixel."""
    canvas = make_texture(2, (160, 200))
    before = canvas.astype(np.float64)
    crop = make_crop()
    mask = draw_ellipse((30, 40, 100, 90))
    smooth = ndimage.gaussian_filter(make_texture().astype(np.float64), (3, 3, 0))
    after = np.round(smooth).astype(np.uint8)
    extent = np.array([30.0, 40, 100, 90])
    cutout = fit_object(crop, after, mask, extent, (200, 160))
    cutout.paste(canvas)
    region = (cutout.rows, cutout.columns)
    grown = ndimage.binary_dilation(mask, iterations=round(DILATION * SIDE))
    alpha = ndimage.gaussian_filter(grown.astype(np.float64), FEATHER * SIDE)
    weights = sample(alpha, crop, extent, region)[..., None]
    pixels = np.stack([sample(after[..., k], crop, extent, region) for k in range(3)], -1)
    expected = weights * pixels + (1 - weights) * before[region]
    difference = np.abs(canvas[region] - expected)
    assert difference.mean() < 0.5
    assert difference.max() < 3


def sample(
    values: NDArray[np.generic],
    crop: Crop,
    extent: NDArray[np.float64],
    region: tuple[slice, slice],
) -> NDArray[np.float64]:
    """Return the mean of a crop's values over each pixel of a region of the canvas."""
    fine = 20
    rows, columns = region
    x = (np.arange((columns.stop - columns.start) * fine) + 0.5) / fine + columns.start
    y = (np.arange((rows.stop - rows.start) * fine) + 0.5) / fine + rows.start
    x0, y0, x1, y1 = crop.box
    u = extent[0] + (x - x0) / (x1 - x0) * (extent[2] - extent[0]) - 0.5
    v = extent[1] + (y - y0) / (y1 - y0) * (extent[3] - extent[1]) - 0.5
    grid = np.meshgrid(v, u, indexing="ij")
    sampled = ndimage.map_coordinates(values.astype(np.float64), grid, order=1, mode="constant")
    blocks = sampled.reshape(rows.stop - rows.start, fine, columns.stop - columns.start, fine)
    return np.asarray(blocks.mean((1, 3)))


def test_shrinking_has_no_aliases() -> None:
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    small = resample(stripes, np.zeros(2), np.array([6.4, 6.4]), (40, 40))
    assert np.abs(small[2:-2, 2:-2].astype(int) - 127).max() < 30
