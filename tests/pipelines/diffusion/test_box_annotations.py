"""Boxes as strings and as painted pictures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.layouts.base import Layout
from synthgen.pipelines.diffusion.box_annotations import (
    compact,
    corners_of,
    literal,
    paint_annotations,
    parse_literal,
)

DOCUMENT = ["label_74_bbox_455.98_436.73_58.57_36.36", "label_74_bbox_405.44_594.41_76.59_40.23"]


def test_the_documents_strings_are_read() -> None:
    assert parse_literal(DOCUMENT[0]) == pytest.approx((455.98, 436.73, 514.55, 473.09, 74))
    assert [literal(parse_literal(text)) for text in DOCUMENT] == DOCUMENT


hundredths = st.integers(0, 100_000).map(lambda n: n / 100)


@given(
    hundredths,
    hundredths,
    hundredths.map(lambda v: v + 1),
    hundredths.map(lambda v: v + 1),
    st.integers(1, 999),
)
def test_strings_keep_boxes_to_a_hundredth(
    x: float, y: float, w: float, h: float, label: int
) -> None:
    assert parse_literal(literal((x, y, x + w, y + h, label))) == pytest.approx(
        (x, y, x + w, y + h, label), abs=0.006
    )


@pytest.mark.parametrize(
    "text",
    [
        "dog",
        "label_18_bbox_1_2_3",
        "label_x_bbox_1_2_3_4",
        "label_18_bbox_1_2_3_4_5",
        "label_18_bbox_1_2_0_4",
    ],
)
def test_malformed_strings_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"annotation '{text}'"):
        parse_literal(text)


@pytest.mark.parametrize(
    ("box", "tokens"),
    [
        ((0, 0, 100, 50), "0 4095"),
        ((50, 25, 75, 49.9), "2080 4080"),
        ((1.5, 0.7, 3.2, 1.6), "0 130"),
    ],
)
def test_compact_form_names_the_cells_of_two_corners(
    box: tuple[float, float, float, float], tokens: str
) -> None:
    assert compact("a dog", box, (100, 50), 64) == "a dog " + " ".join(
        f"<loc_{k}>" for k in tokens.split()
    )


def test_ids_are_cocos_or_given() -> None:
    layout = Layout(64, 64, np.array([[0, 0, 8, 8], [8, 8, 16, 16]], np.float32), ("dog", "gnu"))
    assert [c[4] for c in corners_of(layout, {"gnu": 101})] == [18, 101]
    with pytest.raises(ValueError, match="'gnu' is not a COCO category"):
        corners_of(layout, {})


def test_the_documents_mask() -> None:
    """create_mask([(0, 40, 100, 80, 18), (350, 400, 510, 510, 18)]), but always of the canvas' size."""
    (mask,) = paint_annotations([[(0, 40, 100, 80, 18), (350, 400, 510, 510, 18)]], (512, 520), 90)
    assert mask.shape == (520, 512, 3)
    grey = np.zeros((520, 512), int)
    grey[40:80, 0:100] = grey[400:510, 350:510] = round(18 / 90 * 255)
    np.testing.assert_array_equal(mask, np.repeat(grey[..., None], 3, 2))


def test_small_boxes_lie_over_large_ones() -> None:
    (mask,) = paint_annotations([[(4, 4, 8, 8, 1), (0, 0, 16, 16, 2)]], (16, 16), 2)
    assert (mask[5, 5, 0], mask[0, 0, 0]) == (128, 255)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (
            (0, 0, 17, 4, 1),
            r"annotations\[0\]: box \(0, 0, 17, 4\) is not inside the canvas, 16 x 16 px",
        ),
        ((4, 0, 4, 4, 1), "is not inside"),
        ((0, 0, 4, 4, 91), "category id 91 must be from 1 to label_range, 90"),
    ],
)
def test_what_cannot_be_painted_is_named(
    box: tuple[float, float, float, float, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        paint_annotations([[box]], (16, 16), 90)
