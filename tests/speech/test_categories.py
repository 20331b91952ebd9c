"""What categories are called."""

import pytest

from synthgen.dataset.categories import COCO_IDS
from synthgen.speech.categories import spoken_names


@pytest.mark.parametrize(
    ("category", "several"),
    [
        ("person", "people"), ("bus", "buses"), ("bench", "benches"), ("sheep", "sheep"), ("giraffe", "giraffes"),
        ("skis", "skis"), ("wine glass", "wine glasses"), ("knife", "knives"), ("sandwich", "sandwiches"),
        ("mouse", "mice"), ("couch", "couches"), ("teddy bear", "teddy bears"), ("toothbrush", "toothbrushes"),
        ("scissors", "scissors"), ("toy", "toys"), ("city", "cities"), ("cell phone", "mobile phones"), ("box", "boxes"),
    ],
)  # fmt: skip
def test_several(category: str, several: str) -> None:
    assert spoken_names([*COCO_IDS, "toy", "city", "box"])[tuple(several.split())] == category


def test_every_category_is_found_by_its_own_name() -> None:
    names = spoken_names([*COCO_IDS, "plane", "<rex> dog"])
    assert all(names[tuple(name.split())] == name for name in COCO_IDS)
    assert names[("planes",)] == "plane"  # not the airplane: it is a category of its own here
    assert names[("rex", "dogs")] == "<rex> dog"


def test_other_names_only_of_what_is_known() -> None:
    assert ("sofa",) not in spoken_names(["dog"])
