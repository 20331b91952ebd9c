"""What every sampler of objects promises, over random recipes: exact, inside, deterministic, apart, or refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen import registry
from synthgen.geometry import box_iou
from synthgen.layouts.base import InfeasibleLayoutError, Layout, overlapping_pairs
from synthgen.layouts.objects import ObjectsSpec

SAMPLERS = ("scatter", "grid", "pack", "perspective", "crowd")


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """Random recipes, feasible or not, of every sampler that places objects."""
    name = draw(st.sampled_from(SAMPLERS))
    counts = st.one_of(st.integers(0, 20), st.tuples(st.integers(0, 5), st.integers(5, 20)))
    objects: dict[str, Any] = {"dog": draw(counts)}
    if draw(st.booleans()):
        objects["cat"] = {
            "count": draw(counts),
            "probability": draw(st.sampled_from([0.5, 1.0])),
            "label": draw(st.booleans()),
        }
    total = {}
    if draw(st.booleans()):
        objects["cow"] = {"share": 1.5}
        total = {"total": draw(st.integers(40, 50))}
    recipe = {
        "sampler": name,
        "canvas": draw(st.tuples(st.integers(200, 500), st.integers(200, 500))),
        "objects": objects,
        **total,
    }
    sizes: dict[str, Any] = {
        "size": draw(st.sampled_from([[12, 30], {"range": [8, 120], "distribution": "coco"}]))
    }
    own: dict[str, dict[str, Any]] = {
        "scatter": {
            "spread": draw(st.sampled_from(["even", "blue-noise", "random"])),
            "gap": draw(st.integers(0, 6)),
            **sizes,
        },
        "grid": {"jitter": draw(st.floats(0, 1)), "gap": draw(st.integers(0, 4)), **sizes},
        "pack": {
            "coverage": draw(st.floats(0.05, 0.85)),
            "variety": draw(st.floats(0, 1)),
            "gap": draw(st.integers(0, 2)),
        },
        "perspective": {"max_iou": draw(st.sampled_from([0.0, 0.3])), "least": 4},
        "crowd": {
            "max_iou": draw(st.sampled_from([0.0, 0.3])),
            "clusters": draw(st.integers(1, 4)),
            **sizes,
        },
    }
    return {**recipe, **own[name]}


def build(recipe: dict[str, Any]) -> Any:
    return registry.spec_class("sampler", recipe["sampler"]).model_validate(recipe)


def holds_counts(spec: ObjectsSpec, layout: Layout) -> bool:
    for name, o in spec.objects.items():
        n = layout.categories.count(name)
        if o.count is not None and not (
            o.count[0] <= n <= o.count[1] or (n == 0 and o.probability < 1)
        ):
            return False
    certain = all(o.probability == 1 for o in spec.objects.values())
    return spec.total is None or not certain or spec.total[0] <= len(layout) <= spec.total[1]


def refused(call: Callable[[], object]) -> str:
    """The message of the refusal; empty if there was none."""
    try:
        call()
    except InfeasibleLayoutError as error:
        return str(error)
    return ""


@settings(max_examples=150, deadline=None)
@given(recipes(), st.integers(0, 2**32))
def test_exact_inside_and_apart_or_refused(recipe: dict[str, Any], seed: int) -> None:
    spec = build(recipe)
    refusal = refused(spec.check_feasible) or refused(
        lambda: spec.sample(np.random.default_rng(seed))
    )
    if refusal:
        assert any(c.isdigit() for c in refusal)
        # what scatter and grid take on, they can do
        assert recipe["sampler"] not in ("scatter", "grid") or refused(spec.check_feasible)
        return
    layout = spec.sample(np.random.default_rng(seed))
    assert holds_counts(spec, layout)
    assert (layout.boxes[:, :2] >= 0).all()
    assert (layout.boxes[:, 2:] <= spec.canvas).all()
    assert (layout.boxes[:, 2:] > layout.boxes[:, :2]).all()
    if getattr(spec, "max_iou", 0) == 0:
        assert (
            overlapping_pairs(
                layout.boxes, getattr(spec, "gap", 0) if recipe["sampler"] != "pack" else 0
            )
            == 0
        )
    else:
        overlap = box_iou(layout.boxes.astype(float), layout.boxes.astype(float))
        np.fill_diagonal(overlap, 0)
        assert overlap.max(initial=0) <= spec.max_iou + 1e-6
    if any(not o.label for o in spec.objects.values()):
        assert layout.labelled is not None
        assert layout.labelled.tolist() == [spec.objects[n].label for n in layout.categories]
    again = spec.sample(np.random.default_rng(seed))
    np.testing.assert_array_equal(layout.boxes, again.boxes)
    assert layout.categories == again.categories


def test_pack_makes_no_box_of_less_than_a_pixel() -> None:
    """A recipe and seed whose first treemap has a cell narrower than a pixel."""
    spec = build(
        {
            "sampler": "pack",
            "canvas": (200, 200),
            "objects": {"dog": 40},
            "coverage": 0.5,
            "variety": 1.0,
            "gap": 0,
        }
    )
    for seed in range(300):
        boxes = spec.sample(np.random.default_rng(seed)).boxes
        assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize("coverage", [0.1, 0.5, 0.85])
def test_pack_meets_the_coverage(coverage: float) -> None:
    spec = build(
        {"sampler": "pack", "objects": {"dog": 100}, "coverage": coverage, "aspect": [0.5, 2]}
    )
    spec.check_feasible()
    for seed in range(5):
        layout = spec.sample(np.random.default_rng(seed))
        assert layout.coverage() == pytest.approx(coverage, abs=0.005)
        sides = layout.boxes[:, 2:] - layout.boxes[:, :2]
        assert sides.max() > 2 * sides.min()


def test_pack_refuses_with_the_largest_coverage() -> None:
    spec = build({"sampler": "pack", "objects": {"dog": 200}, "coverage": 0.85, "gap": 20})
    with pytest.raises(
        InfeasibleLayoutError,
        match=r"200 boxes with gap 20 .* cover \d+% of 1024 x 1024 at most; 85% is asked",
    ):
        spec.check_feasible()


def test_perspective_is_a_pinhole_camera() -> None:
    spec = build(
        {
            "sampler": "perspective",
            "canvas": [800, 600],
            "objects": {"dog": 12},
            "size": [0.5, 0.5],
            "aspect": [1, 1],
            "max_iou": 0,
        }
    )
    layout = spec.sample(np.random.default_rng(0))
    assert layout.depth is not None
    tall, foot = layout.boxes[:, 3] - layout.boxes[:, 1], layout.boxes[:, 3]
    f = spec.focal * 600
    np.testing.assert_allclose(tall, f * 0.5 / layout.depth, atol=1.0)
    np.testing.assert_allclose(foot, 0.3 * 600 + f * spec.camera_height / layout.depth, atol=1e-3)
    assert layout.occluded is not None
    assert (layout.occluded == 0).all()


def test_crowd_overlaps_and_says_how_much_is_hidden() -> None:
    spec = build(
        {
            "sampler": "crowd",
            "objects": {"dog": 80},
            "size": [80, 120],
            "clusters": 2,
            "max_iou": 0.3,
        }
    )
    layout = spec.sample(np.random.default_rng(0))
    assert layout.depth is not None
    assert layout.occluded is not None
    assert overlapping_pairs(layout.boxes) > 20
    nearest = int(layout.depth.argmin())
    assert layout.occluded[nearest] == 0
    assert layout.occluded.max() > 0.2


@pytest.mark.parametrize("sampler", ["crowd", "perspective"])
def test_what_finds_no_room_is_refused_with_a_number_that_does(sampler: str) -> None:
    recipe: dict[str, Any] = {
        "sampler": sampler,
        "canvas": [300, 300],
        "objects": {"dog": 400},
        "max_iou": 0,
    }
    if sampler == "crowd":
        recipe["size"] = [40, 60]
    with pytest.raises(InfeasibleLayoutError, match=r"the largest number found is \d+") as caught:
        build(recipe).check_feasible()
    most = int(str(caught.value).rsplit(" ", 1)[1])
    assert 3 < most < 400
    build({**recipe, "objects": {"dog": most // 2}}).check_feasible()


def test_grid_says_which_constraint_binds() -> None:
    with pytest.raises(
        InfeasibleLayoutError,
        match="7 boxes need more than the 2 x 3 cells; the largest number is 6",
    ):
        build({"sampler": "grid", "objects": {"dog": 7}, "rows": 2, "columns": 3}).check_feasible()
    with pytest.raises(InfeasibleLayoutError, match="boxes may be 99 px long, 120 px is asked"):
        build({"sampler": "grid", "objects": {"dog": 100}, "size": [50, 120]}).check_feasible()


def test_blue_noise_is_farther_apart_than_random() -> None:
    def nearest(spread: str) -> float:
        spec = build(
            {
                "sampler": "scatter",
                "objects": {"dog": 60},
                "size": [8, 10],
                "gap": 0,
                "spread": spread,
            }
        )
        found = []
        for seed in range(10):
            boxes = spec.sample(np.random.default_rng(seed)).boxes
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2
            d = np.hypot(*(centre[:, None] - centre[None]).transpose(2, 0, 1))
            np.fill_diagonal(d, np.inf)
            found.append(d.min(1).mean())
        return float(np.mean(found))

    assert nearest("blue-noise") > 1.3 * nearest("random")
