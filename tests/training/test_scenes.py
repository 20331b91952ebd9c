"""The scenes of a training: numbered, captioned with what they show, and in one order."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from synthgen.formats.entries import Problem
from synthgen.training.base import DataSpec
from synthgen.training.dataset_scenes import ShardScenes
from synthgen.training.scenes import (
    MixedScenes,
    PastedScenes,
    Pool,
    Scenes,
    load_scenes,
    open_held_out_scenes,
    open_scenes,
)


def read_images(scenes: Scenes, start: int, number: int) -> list[bytes]:
    """Return the bytes of the images of `number` scenes from number `start`."""
    return [image.tobytes() for _, image in islice(scenes.iterate_from(start), number)]


def test_scenes_are_a_function_of_seed_and_number() -> None:
    scenes = PastedScenes(160, 0)
    scene, image = scenes[3]
    same_scene, same_image = next(scenes.iterate_from(3))
    _, other_image = PastedScenes(160, 1)[3]
    np.testing.assert_array_equal(image, same_image)
    assert scene.phrases == same_scene.phrases
    assert not np.array_equal(image, other_image)


def test_prompts_name_colours_that_the_cut_outs_have() -> None:
    scenes = PastedScenes(256, 0)
    colours = ["black", "brown", "white", "white and black", "white and brown"]
    assert scenes.colours["dog"] == colours
    assert "a field of grass" in scenes.backgrounds
    for scene, _ in islice(scenes.iterate_from(0), 20):
        for phrase, category in zip(scene.phrases, scene.layout.categories, strict=True):
            coloured = {f"a {colour} {category}" for colour in scenes.colours[category]}
            assert phrase in coloured | {f"a {category}"}


def test_the_sizes_of_boxes_can_be_chosen() -> None:
    for scene, _ in islice(PastedScenes(256, 0, sizes=(20, 30)).iterate_from(0), 6):
        sides = scene.layout.boxes[:, 2:] - scene.layout.boxes[:, :2]
        assert (sides.max(1, initial=20) >= 20 - 1).all()
        assert (sides <= 54 + 1).all()
    with pytest.raises(ValueError, match="sizes: ") as caught:
        DataSpec(side=256, sizes=(20, 110))
    message = "sizes: [20.0, 110.0] must be two sides from 8 px to 104 px (half of `side` less 24)"
    assert message in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_does_not_depend_on_workers(workers: int) -> None:
    scenes = PastedScenes(96, 0)
    for k, (_, image) in enumerate(islice(load_scenes(scenes, 5, workers), 5), 5):
        np.testing.assert_array_equal(image, scenes[k][1])


def test_the_pool_is_a_function_of_the_step() -> None:
    pool = Pool(
        PastedScenes(64, 0),
        DataSpec(side=64, scenes=3, fresh=1),
        lambda scene, image: int(image.sum()),
    )
    whole = [list(items) for items in islice(pool.steps(0), 120)]
    assert whole[0] == whole[49] != whole[50]
    assert [list(items) for items in islice(pool.steps(70), 50)] == whole[70:]


def test_the_samples_of_shards_are_scenes(dataset: Path) -> None:
    scenes = open_scenes(DataSpec(shards=str(dataset), side=96), seed=0)
    assert isinstance(scenes, ShardScenes)
    first = list(islice(scenes.iterate_from(0), 8))  # of six samples, two are read twice
    for scene, image in first:
        assert image.shape == (96, 96, 3)
        assert scene.background == "a field of grass"
        assert all(phrase in ("a brown dog", "a white dog") for phrase in scene.phrases)
        assert (scene.layout.boxes >= 0).all()
        assert (scene.layout.boxes <= 96).all()
    again = list(islice(scenes.iterate_from(3), 5))
    np.testing.assert_array_equal(again[2][1], first[5][1])


def test_held_out_samples_are_not_trained_on(dataset: Path) -> None:
    everything = DataSpec(shards=str(dataset), side=128)
    data = everything.model_copy(update={"hold_out": 3})
    whole = set(read_images(open_scenes(everything, 0), 0, 6))
    trained = set(read_images(open_scenes(data, 0), 0, 8))
    held_out = set(read_images(open_held_out_scenes(data, 0), 0, 8))
    assert (len(whole), len(trained), len(held_out)) == (6, 4, 2)
    assert trained | held_out == whole


@pytest.mark.parametrize("share", [0.25, 0.5, 0.7])
def test_mixed_scenes_keep_their_share_and_can_start_anywhere(dataset: Path, share: float) -> None:
    scenes = open_scenes(
        DataSpec(shards=str(dataset), side=64, mixed_with=str(dataset), mixed_share=share), 0
    )
    assert isinstance(scenes, MixedScenes)
    scenes.first = PastedScenes(64, 1)
    scenes.second = PastedScenes(64, 2)
    second = set(read_images(scenes.second, 0, 40))
    whole = read_images(scenes, 0, 40)
    assert abs(sum(image in second for image in whole) - 40 * share) <= 1
    assert read_images(scenes, 13, 5) == whole[13:18]


def test_mixed_scenes_know_what_both_sequences_skip(dataset: Path) -> None:
    data = DataSpec(shards=str(dataset), side=64, mixed_with=str(dataset), on_bad="skip")
    scenes = open_scenes(data, 0)
    assert isinstance(scenes, MixedScenes)
    for k, sequence in enumerate((scenes.first, scenes.second)):
        assert isinstance(sequence, ShardScenes)
        sequence.handle_problems([Problem(f"image {k}", "does not decode")])
    assert scenes.skipped == {"image 0": "does not decode", "image 1": "does not decode"}
