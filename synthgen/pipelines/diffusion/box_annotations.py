"""Boxes as the source documents write them: strings, and corner tuples with a label."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from synthgen.dataset.categories import category_ids
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
        description="of the whole picture: {counts}, {phrases} and {background} are replaced",
    )
    categories: dict[str, int] = Field(default={}, description="ids of names that COCO lacks")

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = super().check(sampler, scene)
        try:
            category_ids(sampler.names(), self.categories)
        except ValueError as error:
            problems.append(f"categories: {error}")
        return problems


def corners_of(layout: Layout, categories: Mapping[str, int]) -> list[Corners]:
    """The boxes of a layout with their category ids.

    Raises:
        ValueError: a name that is neither in `categories` nor COCO's.
    """
    ids = category_ids(dict.fromkeys(layout.categories), categories)
    return [
        (x0, y0, x1, y1, ids[n])
        for (x0, y0, x1, y1), n in zip(layout.boxes.tolist(), layout.categories, strict=True)
    ]


def literal(corners: Corners) -> str:
    """`label_{category id}_bbox_{x}_{y}_{w}_{h}`: COCO's xywh in px, to a hundredth."""
    *box, label = corners
    bbox = xyxy_to_xywh(np.array(box, np.float64)).tolist()
    return f"label_{label}_bbox_" + "_".join(f"{v:.2f}" for v in bbox)


def parse_literal(text: str) -> Corners:
    """The box and category id of such a string.

    Raises:
        ValueError: it is none, or its box has no area.
    """
    match = LITERAL.fullmatch(text)
    if match is None:
        raise ValueError(
            f"annotation {text!r}: must be label_ID_bbox_X_Y_W_H, such as label_18_bbox_455.98_436.73_58.57_36.36"
        )
    label, (x, y, w, h) = int(match[1]), (float(match[i]) for i in range(2, 6))
    if w <= 0 or h <= 0:
        raise ValueError(
            f"annotation {text!r}: its width {w:g} and height {h:g} must be more than 0"
        )
    return x, y, x + w, y + h, label


def compact(phrase: str, box: Sequence[float], canvas: tuple[int, int], bins: int) -> str:
    """A phrase and two location tokens: the cells, counted row by row, that hold the first and the last corner of a box.

    The canvas is divided into `bins` by `bins` cells, each of which has a token (GeoDiffusion, arXiv 2306.04607, section 3.2).
    """
    x0, y0, x1, y1 = (
        min(bins - 1, max(0, int(v / side * bins)))
        for v, side in zip(box, (canvas[0], canvas[1]) * 2, strict=True)
    )
    return f"{phrase} <loc_{y0 * bins + x0}> <loc_{y1 * bins + x1}>"


def paint_annotations(
    annotations: Sequence[Sequence[Corners]], canvas: tuple[int, int], label_range: int
) -> NDArray[np.uint8]:
    """Boxes on black, one picture (H, W, 3) uint8 of the canvas' size for each sequence; small boxes lie over large ones.

    Args:
        annotations: boxes of each image, in px of the canvas.
        canvas: width, height in px.
        label_range: the category id that is painted white; grey is category id / label_range x 255.

    Raises:
        ValueError: a box that is not inside the canvas, or a category id beyond the range.
    """
    pictures = np.zeros((len(annotations), canvas[1], canvas[0], 3), np.uint8)
    for n, boxes in enumerate(annotations):
        for x0, y0, x1, y1, label in sorted(boxes, key=lambda b: -(b[2] - b[0]) * (b[3] - b[1])):
            if not (0 <= x0 < x1 <= canvas[0] and 0 <= y0 < y1 <= canvas[1]):
                raise ValueError(
                    f"annotations[{n}]: box {(x0, y0, x1, y1)} is not inside the canvas, {canvas[0]} x {canvas[1]} px"
                )
            if not 1 <= label <= label_range:
                raise ValueError(
                    f"annotations[{n}]: category id {label} must be from 1 to label_range, {label_range}"
                )
            pictures[
                n,
                round(y0) : max(round(y1), round(y0) + 1),
                round(x0) : max(round(x1), round(x0) + 1),
            ] = round(label / label_range * 255)
    return pictures
