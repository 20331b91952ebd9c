"""Find a generated object in its crop, and fit it into its box.

The crop without the object is known, so the object is what differs from it.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from synthgen.pipelines.inpaint.collage import Cutout
from synthgen.pipelines.inpaint.crops import Boxes, Crop

DIFFERENCE = 28  # of 255; a smaller one is no object but texture, or the autoencoder's error
SMOOTHING = 1 / 56  # standard deviation of the blur before the comparison, as a share of the side
LEAST_AREA = 0.08  # of its box, below which an object counts as not found
MOST_STRETCH = 2.0  # an object that would be stretched or squeezed more counts as not found
DILATION = 1 / 32  # how far around an object its surroundings are pasted, as a share of the side
FEATHER = 1 / 64  # standard deviation of the edge of what is pasted, as a share of the side
MOST_SAMPLES = 8  # samples along x and y for a pixel


def find_object(
    crop: Crop, before: NDArray[np.uint8], after: NDArray[np.uint8]
) -> NDArray[np.bool_] | None:
    """Return the mask (h, w) of the object in an enlarged crop; None if there is none.

    Args:
        before: (h, w, 3), the crop without the object.
        after: (h, w, 3), the crop with the object.
    """
    side = max(crop.size)
    blur = (SMOOTHING * side, SMOOTHING * side, 0)
    first = ndimage.gaussian_filter(before.astype(np.float32), blur)
    second = ndimage.gaussian_filter(after.astype(np.float32), blur)
    changed = np.abs(second - first).max(2) > DIFFERENCE
    bodies = ndimage.binary_opening(changed, iterations=max(1, side // 112))
    labels, count = ndimage.label(bodies)
    if count == 0:
        return None
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    whole = ndimage.binary_propagation(labels == largest, mask=changed)  # with its thin parts
    mask: NDArray[np.bool_] = ndimage.binary_fill_holes(whole)
    width, height = (crop.box[2:] - crop.box[:2]) * crop.scale
    if mask.sum() < LEAST_AREA * width * height:
        return None
    stretch = compute_stretch(crop, measure_extent(mask))
    if (np.maximum(stretch, 1 / stretch) > MOST_STRETCH).any():
        return None
    return mask


def measure_extent(mask: NDArray[np.bool_]) -> Boxes:
    """Return the box (4,) of a mask that is not empty, xyxy in px."""
    (rows, columns) = ndimage.find_objects(mask.astype(np.int8))[0]
    return np.array([columns.start, rows.start, columns.stop, rows.stop], np.float64)


def compute_stretch(crop: Crop, extent: Boxes) -> NDArray[np.float64]:
    """Return how far an object is stretched along x and y to fill its box; 1: not at all."""
    asked = (crop.box[2:] - crop.box[:2]) * crop.scale
    stretch: NDArray[np.float64] = asked / (extent[2:] - extent[:2])
    return stretch


def fit_object(
    crop: Crop,
    after: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    extent: Boxes,
    canvas: tuple[int, int],
) -> Cutout:
    """Move and stretch an object so that its extent becomes its box.

    Args:
        after: (h, w, 3), the enlarged crop with the object.
        mask: (h, w), the object.
        extent: (4,) xyxy in px of the enlarged crop: what becomes the box.
        canvas: width, height of the canvas in px.
    """
    side = max(crop.size)
    grown = ndimage.binary_dilation(mask, iterations=max(1, round(DILATION * side)))
    alpha = ndimage.gaussian_filter(grown.astype(np.float32), FEATHER * side)
    # Px of the enlarged crop per px of the canvas, after the stretch.
    step = (extent[2:] - extent[:2]) / (crop.box[2:] - crop.box[:2])
    margin = (DILATION + 3 * FEATHER) * side / step + 1
    low = np.floor(crop.box[:2] - margin).astype(int).clip(0)
    high = np.minimum(np.ceil(crop.box[2:] + margin).astype(int), canvas)
    start = extent[:2] + (low - crop.box[:2]) * step
    size = (int(high[0] - low[0]), int(high[1] - low[1]))
    weights = resample(to_levels(alpha), start, step, size).astype(np.float32) / np.float32(255)
    return Cutout(
        rows=slice(int(low[1]), int(high[1])),
        columns=slice(int(low[0]), int(high[0])),
        pixels=resample(after, start, step, size),
        weights=weights[..., None],
        covered=resample(to_levels(mask), start, step, size) >= 128,
    )


def to_levels(values: NDArray[np.float32] | NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return values in [0, 1] as levels from 0 to 255."""
    levels: NDArray[np.uint8] = np.round(values.clip(0, 1) * np.float32(255)).astype(np.uint8)
    return levels


def resample(
    image: NDArray[np.uint8],
    start: NDArray[np.float64],
    step: NDArray[np.float64],
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """Return a part of an image at another resolution; outside the image it is 0.

    The image is sampled several times for each pixel (bicubic), and the samples are shrunk
    (Lanczos), so that a shrunk image is sharp and has no aliases.

    Args:
        image: (h, w, 3) or (h, w).
        start: x, y in px of the image: the upper left corner of the part.
        step: px of the image per px of the result, along x and y.
        size: width, height of the result in px.
    """
    samples = min(MOST_SAMPLES, 1 + math.ceil(step.max()))
    fine = step / samples
    matrix = (fine[0], 0, start[0], 0, fine[1], start[1])
    larger = (size[0] * samples, size[1] * samples)
    sampled = Image.fromarray(image).transform(
        larger, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )
    return np.asarray(sampled.resize(size, Image.Resampling.LANCZOS))
