"""Pasted cut-outs fill their boxes, their masks are exact, and the prompt selects them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from synthgen.assets import ASSETS
from synthgen.layouts.base import Layout
from synthgen.layouts.scatter import Spec as ScatterSpec
from synthgen.pipelines.backgrounds import choose_by_words, crop_background
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.paste import PastePainter, Spec, round_to_pixels
from synthgen.scenes.scene import Scene, SceneSpec, list_image_files

SCENES = SceneSpec(
    object=("a brown {category}", "a black {category}"), background="a field of grass"
)


@pytest.fixture(scope="module")
def painter() -> PastePainter:
    return Spec(cutouts="heldout", grounds="heldout").load(SCENES, Numerics())


def scene(seed: int, **spec: object) -> Scene:
    sampler = ScatterSpec.model_validate(
        {"canvas": (256, 256), "objects": {"dog": 8}, "size": (30, 70), **spec}
    )
    return SCENES.draw(sampler.sample(np.random.default_rng(seed)), np.random.default_rng(seed))


def seeds(*numbers: int) -> list[np.random.SeedSequence]:
    return [np.random.SeedSequence(n) for n in numbers]


def test_masks_fill_their_boxes(painter: PastePainter) -> None:
    for n, painting in enumerate(painter([scene(n) for n in range(6)], seeds(*range(6)))):
        boxes = scene(n).layout.boxes
        assert painting.image.shape == (256, 256, 3)
        assert painting.image.dtype == np.uint8
        assert painting.masks is not None
        for box, mask in zip(boxes, painting.masks, strict=True):
            x, y, w, h = coco_mask.toBbox(mask)
            assert w >= 0.9 * (box[2] - box[0])
            assert h >= 0.9 * (box[3] - box[1])
            assert x >= box[0]
            assert y >= box[1]
            assert x + w <= box[2]
            assert y + h <= box[3]


def test_an_image_does_not_depend_on_its_batch(painter: PastePainter) -> None:
    together = painter([scene(1), scene(2)], seeds(5, 6))
    alone = [painter([scene(1)], seeds(5))[0], painter([scene(2)], seeds(6))[0]]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert a.masks == b.masks


def test_nothing_is_pasted_outside_the_boxes() -> None:
    painter = Spec(cutouts="heldout", grounds="heldout", shadow=0).load(SCENES, Numerics())
    full = scene(3)
    empty = Scene(Layout(256, 256, np.zeros((0, 4), np.float32), ()), full.background)
    pasted = painter([full], seeds(1))[0].image
    bare = painter([empty], seeds(1))[0].image
    changed = (pasted != bare).any(2)
    for x0, y0, x1, y1 in full.layout.boxes.astype(int):
        assert changed[y0:y1, x0:x1].any()
        changed[y0:y1, x0:x1] = False
    assert not changed.any()


SMALL = [
    (1.5, 10, 2.5, 30),
    (63, 62.5, 64, 63.5),
    (0.2, 0.2, 0.4, 0.4),
    (63.6, 5, 64, 6),
    (5, 5, 7, 6),
    (5, 5, 7, 7),
]


@pytest.mark.parametrize("box", SMALL)
def test_the_smallest_boxes_are_pasted_and_their_masks_are_not_empty(
    painter: PastePainter, box: tuple[float, ...]
) -> None:
    layout = Layout(64, 64, np.array([box], np.float32), ("dog",), ("a dog",))
    for painting in painter([Scene(layout, "grass")] * 4, seeds(*range(4))):
        assert painting.masks is not None
        mask = coco_mask.decode(
            {**painting.masks[0], "counts": painting.masks[0]["counts"].encode()}
        )
        y, x = np.nonzero(mask)
        assert len(x)
        low = np.floor(box[:2])
        high = np.ceil(box[2:])
        assert (low - 1 <= (x.min(), y.min())).all()
        assert ((x.max(), y.max()) <= high).all()


def test_rounding_to_pixels_only_changes_boxes_that_would_lose_their_area() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 50, (500, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 14, (500, 2))], 1).astype(np.float32)
    found = round_to_pixels(boxes, (64, 64))
    rounded = np.round(boxes).astype(int)
    assert ((found[:, 2:] - found[:, :2]) >= 1).all()
    assert ((found >= 0) & (found <= 64)).all()
    real = (rounded[:, 2:] > rounded[:, :2]).all(1)
    np.testing.assert_array_equal(found[real], rounded[real])
    assert not real.all()


def test_the_nearer_object_hides_the_farther(painter: PastePainter) -> None:
    boxes = np.array([[40, 40, 120, 110], [40, 40, 120, 110]], np.float32)
    layout = Layout(
        160, 160, boxes, ("dog", "dog"), ("a dog", "a dog"), depth=np.array([1.0, 9.0], np.float32)
    )
    masks = painter([Scene(layout, "grass")], seeds(0))[0].masks
    assert masks is not None
    both = coco_mask.merge([{**m, "counts": m["counts"].encode()} for m in masks], intersect=True)
    assert coco_mask.area(both) == 0
    assert coco_mask.area(masks[0]) > coco_mask.area(masks[1])


def test_the_words_of_the_prompt_choose_the_background() -> None:
    files = [
        Path(n) for n in ("brown_0.webp", "white_0.webp", "white-and-black_0.webp", "grass_1.webp")
    ]
    rng = np.random.default_rng(0)
    picks = {
        prompt: choose_by_words(files, prompt, rng).name
        for prompt in ("a white dog", "a white and black dog", "a field of grass")
    }
    assert list(picks.values()) == ["white_0.webp", "white-and-black_0.webp", "grass_1.webp"]
    assert {choose_by_words(files, "a zebra", rng).name for _ in range(60)} == {
        f.name for f in files
    }


@pytest.mark.parametrize("size", [(64, 64), (700, 300), (1024, 1024)])
def test_a_background_covers_any_canvas(size: tuple[int, int]) -> None:
    for path in list_image_files(ASSETS / "grounds" / "heldout")[:3]:
        assert crop_background(path, *size, np.random.default_rng(0)).size == size


def test_the_backgrounds_of_the_user_are_used(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "red.png")
    words = SceneSpec(backgrounds=str(tmp_path))
    painting = Spec(cutouts="heldout", shadow=0).load(words, Numerics())(
        [scene(0, objects={"dog": 1})], seeds(0)
    )[0]
    assert (painting.image.reshape(-1, 3) == (200, 10, 10)).all(1).mean() > 0.5


def test_errors_name_missing_categories_and_folders() -> None:
    sampler = ScatterSpec(objects={"dog": 1, "fox": 1})
    assert Spec().check(sampler, SCENES) == [
        "cutouts: no cut-outs of 'fox' in 'train'; it has ['ball', 'cat', 'dog', 'tree']"
    ]
    assert Spec(cutouts="nowhere", grounds="nowhere").check(
        ScatterSpec(objects={"dog": 1}), SCENES
    ) == [
        "cutouts: no cut-outs of 'dog' in 'nowhere'; it has []",
        "grounds: no images in 'nowhere'",
    ]


def test_the_shipped_cutouts_are_many_and_split() -> None:
    train, heldout = (
        list_image_files(ASSETS / "cutouts" / split / "dog") for split in ("train", "heldout")
    )
    assert len(train) >= 200
    assert len(heldout) >= 50
    assert not {p.name for p in train} & {p.name for p in heldout}
    assert sum(p.stat().st_size for p in list_image_files(ASSETS)) <= 6_000_000
