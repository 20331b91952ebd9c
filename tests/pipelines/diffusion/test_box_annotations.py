"""Boxes as strings and as images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.layouts.base import Layout
from synthgen.pipelines.diffusion.box_annotations import (
    draw_annotations,
    format_compact,
    format_literal,
    list_corners,
    parse_literal,
)

DOCUMENT = ["label_74_bbox_455.98_436.73_58.57_36.36", "label_74_bbox_405.44_594.41_76.59_40.23"]


def test_strings_of_the_source_document_are_parsed() -> None:
    assert parse_literal(DOCUMENT[0]) == pytest.approx((455.98, 436.73, 514.55, 473.09, 74))
    assert [format_literal(parse_literal(text)) for text in DOCUMENT] == DOCUMENT


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
    corners = (x, y, x + w, y + h, label)
    assert parse_literal(format_literal(corners)) == pytest.approx(corners, abs=0.006)


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
def test_a_malformed_string_is_named_in_the_error(text: str) -> None:
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
    first, second = tokens.split()
    assert format_compact("a dog", box, (100, 50), 64) == f"a dog <loc_{first}> <loc_{second}>"


def test_category_ids_are_those_of_coco_or_of_the_recipe() -> None:
    layout = Layout(64, 64, np.array([[0, 0, 8, 8], [8, 8, 16, 16]], np.float32), ("dog", "gnu"))
    dog, gnu = list_corners(layout, {"gnu": 101})
    assert dog[4] == 18
    assert gnu[4] == 101
    with pytest.raises(ValueError, match="'gnu' is not a COCO category"):
        list_corners(layout, {})


def test_boxes_are_drawn_like_the_mask_of_the_source_document() -> None:
    """The boxes are those of the document; the mask always has the size of the canvas."""
    (mask,) = draw_annotations([[(0, 40, 100, 80, 18), (350, 400, 510, 510, 18)]], (512, 520), 90)
    assert mask.shape == (520, 512, 3)
    level = round(18 / 90 * 255)
    grey = np.zeros((520, 512), int)
    grey[40:80, 0:100] = level
    grey[400:510, 350:510] = level
    np.testing.assert_array_equal(mask, np.repeat(grey[..., None], 3, 2))


def test_small_boxes_are_drawn_over_large_ones() -> None:
    (mask,) = draw_annotations([[(4, 4, 8, 8, 1), (0, 0, 16, 16, 2)]], (16, 16), 2)
    assert mask[5, 5, 0] == 128
    assert mask[0, 0, 0] == 255


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
def test_a_box_that_cannot_be_drawn_is_named_in_the_error(
    box: tuple[float, float, float, float, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw_annotations([[box]], (16, 16), 90)
