"""Boxes in the forms of the source documents: as strings, and as corners with a category id."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from synthgen.dataset.categories import find_category_ids
from synthgen.geometry import xyxy_to_xywh
from synthgen.layouts.base import Layout, SamplerSpec
from synthgen.pipelines.diffusion.models import LayoutModelSpec
from synthgen.scenes.scene import COUNTS, Caption, SceneSpec

Corners = tuple[float, float, float, float, int]
"""x0, y0, x1, y1 in px, and a category id."""

NUMBER = r"(-?\d+(?:\.\d+)?)"
LITERAL = re.compile(rf"label_(\d+)_bbox_{NUMBER}_{NUMBER}_{NUMBER}_{NUMBER}")


class AnnotatedSpec(LayoutModelSpec):
    """A pipeline recipe whose network reads boxes with category ids."""

    caption: Caption = Field(
        COUNTS,
        description="Caption of the whole image: {counts}, {phrases} and {background} are "
        "replaced.",
    )
    categories: dict[str, int] = Field(
        default={}, description="Ids of categories that COCO does not have."
    )

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = super().check(sampler, scene)
        try:
            find_category_ids(sampler.names(), self.categories)
        except ValueError as error:
            problems.append(f"categories: {error}")
        return problems


def list_corners(layout: Layout, categories: Mapping[str, int]) -> list[Corners]:
    """Return the boxes of a layout with their category ids.

    Raises:
        ValueError: a name is neither in `categories` nor one of COCO's.
    """
    ids = find_category_ids(dict.fromkeys(layout.categories), categories)
    annotations = []
    for box, name in zip(layout.boxes.tolist(), layout.categories, strict=True):
        x0, y0, x1, y1 = box
        annotations.append((x0, y0, x1, y1, ids[name]))
    return annotations


def format_literal(corners: Corners) -> str:
    """Return a box as `label_{category id}_bbox_{x}_{y}_{w}_{h}`: COCO's xywh in px, 2 decimals."""
    *box, label = corners
    bbox = xyxy_to_xywh(np.array(box, np.float64)).tolist()
    return f"label_{label}_bbox_" + "_".join(f"{v:.2f}" for v in bbox)


def parse_literal(text: str) -> Corners:
    """Return the box and the category id of a string that `format_literal` writes.

    Raises:
        ValueError: the string has another form, or its box has no area.
    """
    match = LITERAL.fullmatch(text)
    if match is None:
        raise ValueError(
            f"annotation {text!r}: must be label_ID_bbox_X_Y_W_H, "
            "such as label_18_bbox_455.98_436.73_58.57_36.36"
        )
    label = int(match[1])
    x, y, w, h = (float(match[i]) for i in range(2, 6))
    if w <= 0 or h <= 0:
        raise ValueError(
            f"annotation {text!r}: its width {w:g} and height {h:g} must be more than 0"
        )
    return x, y, x + w, y + h, label


def format_compact(phrase: str, box: Sequence[float], canvas: tuple[int, int], bins: int) -> str:
    """Return a phrase with the location tokens of the first and the last corner of its box.

    The canvas is divided into `bins` by `bins` cells, counted row by row. Each cell has a token
    (GeoDiffusion, arXiv 2306.04607, section 3.2).
    """
    cells = []
    for value, side in zip(box, (canvas[0], canvas[1]) * 2, strict=True):
        cell = int(value / side * bins)
        cells.append(min(bins - 1, max(0, cell)))
    x0, y0, x1, y1 = cells
    return f"{phrase} <loc_{y0 * bins + x0}> <loc_{y1 * bins + x1}>"


def draw_annotations(
    annotations: Sequence[Sequence[Corners]], canvas: tuple[int, int], label_range: int
) -> NDArray[np.uint8]:
    """Draw boxes on black, one image (H, W, 3) uint8 of the canvas' size for each sequence.

    Small boxes are drawn over large ones.

    Args:
        annotations: boxes of each image, in px of the canvas.
        canvas: width, height in px.
        label_range: the category id that is drawn white; the grey level of the others is
            category id / label_range x 255.

    Raises:
        ValueError: a box is not inside the canvas, or a category id is not in the range.
    """
    images = np.zeros((len(annotations), canvas[1], canvas[0], 3), np.uint8)
    for n, boxes in enumerate(annotations):
        for corners in sorted(boxes, key=_area, reverse=True):
            _check_corners(f"annotations[{n}]", corners, canvas, label_range)
            x0, y0, x1, y1, label = corners
            left = round(x0)
            top = round(y0)
            right = max(round(x1), left + 1)
            bottom = max(round(y1), top + 1)
            images[n, top:bottom, left:right] = round(label / label_range * 255)
    return images


def _area(corners: Corners) -> float:
    x0, y0, x1, y1, _ = corners
    return (x1 - x0) * (y1 - y0)


def _check_corners(key: str, corners: Corners, canvas: tuple[int, int], label_range: int) -> None:
    """Raise ValueError for a box outside the canvas, or a category id that is not in the range."""
    x0, y0, x1, y1, label = corners
    if not (0 <= x0 < x1 <= canvas[0] and 0 <= y0 < y1 <= canvas[1]):
        raise ValueError(
            f"{key}: box {(x0, y0, x1, y1)} is not inside the canvas, {canvas[0]} x {canvas[1]} px"
        )
    if not 1 <= label <= label_range:
        raise ValueError(f"{key}: category id {label} must be from 1 to label_range, {label_range}")
