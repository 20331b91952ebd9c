"""Scenes to train on: numbered, captioned after what they show, and the same however they are read."""

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
    held_out_scenes,
    loaded,
    open_scenes,
)


def test_scenes_are_a_function_of_seed_and_number() -> None:
    scenes = PastedScenes(160, 0)
    (scene, picture), (again, same), (_, other) = (
        scenes[3],
        next(scenes.from_number(3)),
        PastedScenes(160, 1)[3],
    )
    np.testing.assert_array_equal(picture, same)
    assert scene.phrases == again.phrases
    assert not np.array_equal(picture, other)


def test_captions_name_colours_that_the_cut_outs_have() -> None:
    scenes = PastedScenes(256, 0)
    assert scenes.colours["dog"] == [
        "black",
        "brown",
        "white",
        "white and black",
        "white and brown",
    ]
    assert "a field of grass" in scenes.grounds
    for scene, _ in islice(scenes.from_number(0), 20):
        for phrase, category in zip(scene.phrases, scene.layout.categories, strict=True):
            assert phrase in {
                f"a {category}",
                *(f"a {c} {category}" for c in scenes.colours[category]),
            }


def test_sizes_can_be_chosen() -> None:
    for scene, _ in islice(PastedScenes(256, 0, sizes=(20, 30)).from_number(0), 6):
        sides = scene.layout.boxes[:, 2:] - scene.layout.boxes[:, :2]
        assert (sides.max(1, initial=20) >= 20 - 1).all()
        assert (sides <= 54 + 1).all()
    with pytest.raises(
        ValueError,
        match=r"sizes: \[20.0, 110.0\] must be two sides from 8 px to 104 px \(half of `side` less 24\)",
    ):
        DataSpec(side=256, sizes=(20, 110))


@pytest.mark.parametrize("workers", [0, 2])
def test_order_does_not_depend_on_workers(workers: int) -> None:
    scenes = PastedScenes(96, 0)
    for k, (_, picture) in enumerate(islice(loaded(scenes, 5, workers), 5), 5):
        np.testing.assert_array_equal(picture, scenes[k][1])


def test_pool_is_a_function_of_the_step() -> None:
    pool = Pool(
        PastedScenes(64, 0),
        DataSpec(side=64, scenes=3, fresh=1),
        lambda scene, picture: int(picture.sum()),
    )
    straight = [list(items) for items in islice(pool.steps(0), 120)]
    assert straight[0] == straight[49] != straight[50]
    assert [list(items) for items in islice(pool.steps(70), 50)] == straight[70:]


def test_shards_as_scenes(dataset: Path) -> None:
    scenes = open_scenes(DataSpec(shards=str(dataset), side=96), seed=0)
    assert isinstance(scenes, ShardScenes)
    first = list(
        islice(scenes.from_number(0), 8)
    )  # six samples: the last two are of the second round
    for scene, picture in first:
        assert picture.shape == (96, 96, 3)
        assert scene.background == "a field of grass"
        assert all(p in ("a brown dog", "a white dog") for p in scene.phrases)
        assert (scene.layout.boxes >= 0).all()
        assert (scene.layout.boxes <= 96).all()
    again = list(islice(scenes.from_number(3), 5))
    np.testing.assert_array_equal(again[2][1], first[5][1])


def test_held_out_samples_are_not_trained_on(dataset: Path) -> None:
    data = DataSpec(shards=str(dataset), side=128, hold_out=3)
    whole = {
        p.tobytes()
        for _, p in islice(
            open_scenes(DataSpec(shards=str(dataset), side=128), 0).from_number(0), 6
        )
    }
    trained = {p.tobytes() for _, p in islice(open_scenes(data, 0).from_number(0), 8)}
    held = {p.tobytes() for _, p in islice(held_out_scenes(data, 0).from_number(0), 8)}
    assert (len(whole), len(trained), len(held)) == (6, 4, 2)
    assert trained | held == whole


@pytest.mark.parametrize("share", [0.25, 0.5, 0.7])
def test_mixed_scenes_keep_their_share_and_can_begin_anywhere(dataset: Path, share: float) -> None:
    scenes = open_scenes(
        DataSpec(shards=str(dataset), side=64, mixed_with=str(dataset), mixed_share=share), 0
    )
    assert isinstance(scenes, MixedScenes)
    scenes.first, scenes.second = PastedScenes(64, 1), PastedScenes(64, 2)
    second = {p.tobytes() for _, p in islice(scenes.second.from_number(0), 40)}
    straight = [p.tobytes() for _, p in islice(scenes.from_number(0), 40)]
    assert abs(sum(p in second for p in straight) - 40 * share) <= 1
    assert [p.tobytes() for _, p in islice(scenes.from_number(13), 5)] == straight[13:18]


def test_mixed_scenes_tell_what_either_part_skips(dataset: Path) -> None:
    data = DataSpec(shards=str(dataset), side=64, mixed_with=str(dataset), on_bad="skip")
    scenes = open_scenes(data, 0)
    assert isinstance(scenes, MixedScenes)
    for k, part in enumerate((scenes.first, scenes.second)):
        assert isinstance(part, ShardScenes)
        part.note([Problem(f"picture {k}", "does not decode")])
    assert scenes.skipped == {"picture 0": "does not decode", "picture 1": "does not decode"}
