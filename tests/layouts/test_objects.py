"""The numbers, categories and sizes of objects follow the recipe."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from synthgen.layouts.objects import SizeSpec
from synthgen.layouts.scatter import Spec


def sample_names(spec: Spec, n: int = 400) -> list[list[str]]:
    """Return the categories of n random layouts."""
    return [spec.sample_categories(np.random.default_rng(k)) for k in range(n)]


def test_ranges_are_uniform_and_reach_both_ends() -> None:
    counts = [len(names) for names in sample_names(Spec(objects={"dog": [0, 4]}), 2000)]
    assert set(counts) == {0, 1, 2, 3, 4}
    assert stats.chisquare(np.bincount(counts)).pvalue > 0.001


def test_shares_divide_the_boxes_that_counts_leave_over() -> None:
    spec = Spec.model_validate(
        {"total": 30, "objects": {"dog": {"share": 3}, "cat": {"share": 1}, "cow": 6}}
    )
    samples = sample_names(spec)
    for names in samples:
        assert len(names) == 30
        assert names.count("cow") == 6
    assert np.mean([names.count("dog") for names in samples]) == pytest.approx(18, abs=0.5)


def test_a_category_occurs_with_its_probability() -> None:
    spec = Spec.model_validate({"objects": {"dog": 3, "cat": {"count": 2, "probability": 0.25}}})
    counts = [names.count("cat") for names in sample_names(spec, 1000)]
    assert set(counts) == {0, 2}
    assert np.mean(np.array(counts) == 2) == pytest.approx(0.25, abs=0.05)


def test_categories_can_override_the_size() -> None:
    spec = Spec.model_validate(
        {
            "objects": {"dog": 3, "ball": {"count": 3, "size": [10, 12], "aspect": [1, 1]}},
            "size": [50, 60],
        }
    )
    sides = spec.sample_sides(["dog", "ball", "dog", "ball"], np.random.default_rng(0))
    assert (sides[[0, 2]].max(1) >= 50).all()
    assert (sides[[1, 3]].max(1) <= 12).all()
    assert (sides[[1, 3], 0] == sides[[1, 3], 1]).all()


@pytest.mark.parametrize("distribution", ["uniform", "log-uniform"])
def test_sizes_follow_their_distribution(distribution: Any) -> None:
    size = SizeSpec(range=(20, 200), distribution=distribution)
    longest = size.sides(np.random.default_rng(0).random(4000), np.full(4000, 1.4)).max(1)
    cdf = stats.uniform(20, 180).cdf if distribution == "uniform" else stats.loguniform(20, 200).cdf
    assert stats.kstest(longest, cdf).pvalue > 0.01


def test_coco_sizes_have_the_requested_shares() -> None:
    size = SizeSpec(range=(8, 300), distribution="coco", shares=(0.5, 0.3, 0.2))
    u = np.random.default_rng(0).random(20_000)
    area = size.sides(u, np.full(len(u), 1.7)).prod(1)
    assert [np.mean(area < 32**2), np.mean(area >= 96**2)] == pytest.approx([0.5, 0.2], abs=0.01)
    assert area.min() >= 8**2 - 1e-6
    assert area.max() <= 300**2 + 1e-6


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"objects": {"dog": -1}}, "must be [least, most] with 0 <= least <= most"),
        ({"objects": {"dog": [5, 2]}}, "[5, 2] must be [least, most]"),
        ({"objects": {"dog": {"share": 1}}}, "total: missing; dog has a share of it"),
        ({"objects": {"dog": 1}, "total": 5}, "total: no category has a share of it"),
        (
            {"objects": {"dog": 9, "cat": {"share": 1}}, "total": 5},
            "total: 5 is less than the 9 boxes",
        ),
        ({"objects": {"dog": {"count": 1, "share": 1}}}, "count: give either count or share"),
        (
            {"objects": {"dog": {"count": 1, "size": [10, 2000]}}},
            "objects.dog.size: 2000 px is larger than the canvas",
        ),
        (
            {"objects": {"dog": 1}, "size": [30, 20]},
            "[30, 20] must be two positive numbers, the smaller first",
        ),
        (
            {"objects": {"dog": 1}, "size": {"range": [40, 90], "distribution": "coco"}},
            "leaves no room for a class with a share",
        ),
    ],
)
def test_mistakes_are_named(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Spec.model_validate(recipe)
    assert message in str(caught.value)
