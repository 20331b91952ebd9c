"""Scenes: prompts for boxes and background."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from synthgen.layouts.base import Layout
from synthgen.scenes.scene import SceneSpec, build_region_prompt

LAYOUT = Layout(
    64,
    64,
    np.array([[0, 0, 9, 9], [20, 0, 30, 9], [40, 0, 60, 9]], np.float32),
    ("dog", "cat", "dog"),
)


def test_the_prompt_of_each_box_is_sampled_from_the_list() -> None:
    spec = SceneSpec(
        object=("a brown {category}", "a white {category}"), background=("grass", "sand")
    )
    scenes = [spec.draw(LAYOUT, np.random.default_rng(i)) for i in range(40)]
    assert {s.phrases[0] for s in scenes} == {"a brown dog", "a white dog"}
    assert {s.phrases[1] for s in scenes} == {"a brown cat", "a white cat"}
    assert {s.background for s in scenes} == {"grass", "sand"}
    assert scenes[0].prompt.startswith("2 dog, 1 cat, ")


def test_a_category_can_have_its_own_prompts() -> None:
    spec = SceneSpec(
        object="a {category}", phrases={"dog": ("a brown {category}", "a wet {category}")}
    )
    drawn = {spec.draw(LAYOUT, np.random.default_rng(i)).phrases[:2] for i in range(40)}
    assert drawn == {("a brown dog", "a cat"), ("a wet dog", "a cat")}


def test_labels_do_not_depend_on_the_prompt() -> None:
    scene = SceneSpec(object="three wolves").draw(LAYOUT, np.random.default_rng(0))
    assert scene.layout.categories == LAYOUT.categories


def test_a_region_prompt_has_the_object_first() -> None:
    assert build_region_prompt("a dog", "grass") == "a dog, grass"
    assert build_region_prompt("a dog", "") == "a dog"


@pytest.mark.parametrize(
    "bad",
    [
        {"object": ()},
        {"object": "{x}"},
        {"background": ()},
        {"phrases": {"dog": "{x}"}},
        {"phrases": {"dog": []}},
        {"backgrounds": "no/such/folder"},
    ],
)
def test_wrong_values_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SceneSpec.model_validate(bad)


def test_the_phrases_and_the_caption_of_a_layout_are_kept() -> None:
    given = replace(
        LAYOUT, caption="two dogs and a cat on sand", phrases=("an old dog", "a cat", "a dog")
    )
    scene = SceneSpec(object="a white {category}", background="grass").draw(
        given, np.random.default_rng(0)
    )
    assert (scene.prompt, scene.background) == (given.caption, given.caption)
    assert scene.phrases == given.phrases
