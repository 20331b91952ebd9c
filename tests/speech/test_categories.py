"""The names of categories in speech."""

import pytest

from synthgen.dataset.categories import COCO_IDS
from synthgen.speech.categories import list_spoken_names


@pytest.mark.parametrize(
    ("category", "plural"),
    [
        ("person", "people"),
        ("bus", "buses"),
        ("bench", "benches"),
        ("sheep", "sheep"),
        ("giraffe", "giraffes"),
        ("skis", "skis"),
        ("wine glass", "wine glasses"),
        ("knife", "knives"),
        ("sandwich", "sandwiches"),
        ("mouse", "mice"),
        ("couch", "couches"),
        ("teddy bear", "teddy bears"),
        ("toothbrush", "toothbrushes"),
        ("scissors", "scissors"),
        ("toy", "toys"),
        ("city", "cities"),
        ("cell phone", "mobile phones"),
        ("box", "boxes"),
    ],
)
def test_a_category_is_named_by_its_plural(category: str, plural: str) -> None:
    assert list_spoken_names([*COCO_IDS, "toy", "city", "box"])[tuple(plural.split())] == category


def test_every_category_is_named_by_its_own_name() -> None:
    names = list_spoken_names([*COCO_IDS, "plane", "<rex> dog"])
    assert all(names[tuple(name.split())] == name for name in COCO_IDS)
    assert names[("planes",)] == "plane"  # a category here, not a synonym of airplane
    assert names[("rex", "dogs")] == "<rex> dog"


def test_synonyms_of_unknown_categories_are_not_names() -> None:
    assert ("sofa",) not in list_spoken_names(["dog"])
