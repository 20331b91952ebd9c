"""The inpainting pipeline over layouts, with tiny random checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from synthgen.config import ConfigError, load_job
from synthgen.layouts.base import Layout
from synthgen.layouts.scatter import Spec as ScatterSpec
from synthgen.pipelines.base import IncompatibleLayoutError, Numerics
from synthgen.pipelines.inpaint import Spec, objects
from synthgen.pipelines.inpaint import pipeline as inpaint
from synthgen.pipelines.inpaint.collage import Cutout
from synthgen.pipelines.inpaint.crops import place_crops
from synthgen.pipelines.inpaint.fitting import fit_object
from synthgen.pipelines.inpaint.pipeline import InpaintPipeline, exclude_objects, plan_schedule
from synthgen.scenes.scene import Scene, SceneSpec
from synthgen.verification.base import Verdict
from synthgen.verification.classifier import Spec as ClassifierSpec
from synthgen.verification.repair import Inspection
from tests.conftest import save_tiny_checkpoint
from tests.pipelines.diffusion.test_checkpoint import widen

FEW = [
    "pipeline.window=32",
    "layout.canvas=[64, 64]",
    "layout.objects={dog: 1}",
    "layout.size=[12, 20]",
]


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> InpaintPipeline:
    loaded = InpaintPipeline.from_pretrained(checkpoint, use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def make_layout(*boxes: tuple[float, float, float, float], side: int = 64) -> Layout:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Layout(side, side, array, ("dog",) * len(array))


def generate(pipeline: Any, layouts: list[Layout], *seeds: int, **options: Any) -> Any:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"num_inference_steps": 2, "window": 32, "output_type": "np"} | options
    return pipeline(layouts, background="sand", generator=generators, **options)


LAYOUTS = {
    "no box": (),
    "at the edges": ((0, 0, 12, 9), (50, 55, 64, 64)),
    "overlapping": ((10, 10, 40, 40), (20, 20, 44, 50)),
    "as large as the canvas": ((0, 0, 64, 64),),
    "flat": ((2, 30, 62, 34),),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_all_kinds_are_generated(name: str, pipeline: InpaintPipeline) -> None:
    layout = make_layout(*LAYOUTS[name])
    images, (collage,) = generate(pipeline, [layout], 0, return_collages=True)
    assert images.shape == (1, 64, 64, 3)
    assert images.dtype == np.uint8
    owners = collage.find_owners()
    assert set(np.unique(owners)) <= {-1, *range(len(layout))}
    if len(layout):
        assert (owners >= 0).any()


def test_a_batch_is_the_same_as_its_images_alone(pipeline: InpaintPipeline) -> None:
    spec = ScatterSpec(canvas=(64, 64), objects={"dog": 4}, size=(10, 20), gap=0)
    layouts = [spec.sample(np.random.default_rng(k)) for k in range(4)]
    together = generate(pipeline, layouts, 0, 1, 2, 3)
    for k, layout in enumerate(layouts):
        alone = generate(pipeline, [layout], k)
        difference = np.abs(together[k].astype(int) - alone[0])
        assert difference.max() <= 2
        assert difference.mean() < 0.01
    assert np.abs(together[0].astype(int) - together[1]).mean() > 1


def test_nothing_changes_outside_the_objects(pipeline: InpaintPipeline) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    copies = pictures.copy()
    layouts = [make_layout((8, 8, 24, 24)), make_layout((40, 36, 56, 60))]
    images = generate(pipeline, layouts, 0, 1, pictures=pictures)
    for image, picture, layout in zip(images, pictures, layouts, strict=True):
        changed = (image != picture).any(2)
        assert changed.any()
        x0, y0, x1, y1 = layout.boxes[0].astype(int)
        changed[y0 - 6 : y1 + 6, x0 - 6 : x1 + 6] = False
        assert not changed.any()
    np.testing.assert_array_equal(pictures, copies)
    empty = generate(pipeline, [make_layout(), make_layout()], 0, 1, pictures=pictures)
    np.testing.assert_array_equal(empty, pictures)


def test_images_must_match_the_layouts(pipeline: InpaintPipeline) -> None:
    with pytest.raises(IncompatibleLayoutError, match="one image per layout"):
        generate(pipeline, [make_layout()], 0, pictures=np.zeros((1, 32, 64, 3), np.uint8))


def test_a_crop_follows_the_background_outside_the_area(
    pipeline: InpaintPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops: list[Any] = []
    decoded: list[Tensor] = []
    decode = pipeline.decode

    def record(latents: Tensor, **options: Any) -> NDArray[np.uint8]:
        decoded.append(latents)
        return decode(latents, **options)

    monkeypatch.setattr(inpaint, "find_object", lambda *given: crops.append(given))
    monkeypatch.setattr(pipeline, "decode", record)
    generate(pipeline, [make_layout((24, 24, 40, 40))], 0, object_attempts=1, window=64)
    ((crop, before, _),) = crops
    with torch.no_grad():
        background = pipeline.encode_images(before[None])[0]
    changed = (decoded[-1][0] - background).abs().amax(0).numpy() > 1e-4
    np.testing.assert_array_equal(changed, crop.draw_area(pipeline.factor) > 0)


def test_an_object_that_is_not_found_is_generated_again(
    pipeline: InpaintPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_layout((8, 8, 24, 24), (40, 40, 60, 60))
    attempts: list[int] = []

    def find(crop: Any, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Any:
        attempts.append(crop.number)
        found = np.zeros(after.shape[:2], bool)
        found[4:20, 4:20] = True
        return found if crop.number == 1 or attempts.count(0) == 3 else None

    monkeypatch.setattr(inpaint, "find_object", find)
    _, (collage,) = generate(pipeline, [layout], 0, return_collages=True, object_attempts=5)
    assert attempts == [0, 1, 0, 0]
    assert set(np.unique(collage.find_owners())) == {-1, 0, 1}
    attempts.clear()
    monkeypatch.setattr(inpaint, "find_object", lambda crop, *_: attempts.append(crop.number))
    _, (collage,) = generate(pipeline, [layout], 0, return_collages=True)
    assert attempts == [0, 1, 0, 1]
    assert set(np.unique(collage.find_owners())) == {-1, 0, 1}  # their areas are pasted as they are


def test_an_object_that_fails_in_its_crop_is_generated_again(
    pipeline: InpaintPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_layout((8, 8, 24, 24), (40, 40, 60, 60))
    found = np.zeros((32, 32), bool)
    found[4:20, 6:20] = True
    monkeypatch.setattr(inpaint, "find_object", lambda crop, before, after: found)
    pasted: list[NDArray[np.uint8]] = []

    def fit(crop: Any, after: NDArray[np.uint8], *others: Any) -> Cutout:
        pasted.append(after)
        return fit_object(crop, after, *others)

    monkeypatch.setattr(objects, "fit_object", fit)
    seen: list[NDArray[np.uint8]] = []
    verdicts = iter([False, True, True, True, False])

    def find_failed(images: Any, layouts: Any) -> list[NDArray[np.bool_]]:
        seen.extend(images)
        for crop_layout in layouts:
            assert (crop_layout.width, crop_layout.height) == (32, 32)
            assert crop_layout.categories == ("dog",)
            np.testing.assert_array_equal(crop_layout.boxes, [[6, 4, 20, 20]])
        return [np.array([next(verdicts)]) for _ in images]

    generate(pipeline, [layout], 0, find_failed=find_failed, object_attempts=4)
    # The first object passes at once, the second one in its fourth attempt.
    assert len(seen) == 5
    np.testing.assert_array_equal(pasted, [seen[0], seen[4]])
    pasted.clear()
    seen.clear()
    verdicts = iter([False, True, True])
    generate(pipeline, [layout], 0, find_failed=find_failed)
    # The second object fails twice; the first attempt is pasted.
    assert len(seen) == 3
    np.testing.assert_array_equal(pasted, [seen[0], seen[1]])


def test_the_passes_of_a_hundred_objects_are_few(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Counted with 100dogs and Stable Diffusion 1.5 at a quarter of their size, and a stub UNet."""
    pipeline: Any = InpaintPipeline.from_pretrained(
        save_tiny_checkpoint(tmp_path / "checkpoint"), use_safetensors=True
    )
    pipeline.set_progress_bar_config(disable=True)
    factor = pipeline.factor
    passes: list[int] = []

    def predict(t: Tensor, x: Tensor, conditions: Any) -> Tensor:
        passes.append(len(x))
        return torch.zeros(len(x), pipeline.vae.config.latent_channels, *x.shape[2:])

    def decode(latents: Tensor, **options: Any) -> NDArray[np.uint8]:
        shape = (len(latents), latents.shape[2] * factor, latents.shape[3] * factor, 3)
        return np.zeros(shape, np.uint8)

    monkeypatch.setattr(pipeline, "predict", predict)
    monkeypatch.setattr(pipeline, "decode", decode)
    channels = pipeline.vae.config.latent_channels
    monkeypatch.setattr(
        pipeline,
        "encode_images",
        lambda images: torch.zeros(
            len(images), channels, images.shape[1] // factor, images.shape[2] // factor
        ),
    )
    found = np.ones((1, 1), bool)
    nothing = slice(0)
    empty = np.zeros((0, 0), bool)
    pixels = np.zeros((0, 0, 3), np.uint8)
    cutout = Cutout(nothing, nothing, pixels, np.zeros((0, 0, 1), np.float32), empty)
    monkeypatch.setattr(inpaint, "find_object", lambda crop, before, after: found)
    monkeypatch.setattr(objects, "fit_object", lambda *arguments: cutout)
    sampled = load_job("100dogs", ["pipeline=paste"]).layout.sample(np.random.default_rng(0))
    layout = replace(sampled, width=256, height=256, boxes=sampled.boxes / np.float32(4))
    for steps, guidance, most in ((20, 7.5, 3800), (4, 1.0, 460)):
        passes.clear()
        generate(
            pipeline,
            [layout],
            0,
            num_inference_steps=steps,
            window=128,
            background_window=128,
            object_attempts=1,
            guidance_interval=(0, 0.7),
            guidance_scale=guidance,
        )
        assert most * 0.7 < sum(passes) <= most


@pytest.mark.parametrize(
    ("negative", "categories", "expected"),
    [
        (None, (), None),
        ("", (), ""),
        (None, ("dog", "cat", "dog"), "cat, dog"),
        ("", ("dog",), "dog"),
        ("blurry", ("dog",), "blurry, dog"),
    ],
)
def test_the_background_has_no_objects(
    negative: str | None, categories: tuple[str, ...], expected: str | None
) -> None:
    boxes = np.tile(np.array([[8, 8, 24, 24]], np.float32), (len(categories), 1))
    assert exclude_objects([negative], [Layout(64, 64, boxes, categories)]) == [expected]


def test_a_schedule_guides_within_its_interval() -> None:
    schedule = plan_schedule(10, 5.0, (0.2, 0.7), 0.85, 64)
    assert schedule.guidance == (1, 1, 5, 5, 5, 5, 5, 1, 1, 1)
    assert schedule.first == 2
    assert schedule.count_passes() == 13
    assert plan_schedule(4, 0.0, (0, 1), 0.1, 64).first == 3
    assert plan_schedule(4, 0.0, (0, 1), 1.0, 64).count_passes() == 4


def test_a_strength_below_one_keeps_some_of_the_background(pipeline: InpaintPipeline) -> None:
    pictures = np.full((1, 64, 64, 3), 90, np.uint8)
    layout = make_layout((16, 16, 48, 48))
    whole = generate(pipeline, [layout], 0, pictures=pictures, num_inference_steps=4)
    part = generate(pipeline, [layout], 0, pictures=pictures, num_inference_steps=4, strength=0.3)
    assert not np.array_equal(whole, part)


def test_a_painting_has_masks_inside_the_boxes(checkpoint: Path) -> None:
    spec = Spec(model=str(checkpoint), steps=2, window=32)
    painter: Any = spec.load(SceneSpec(background="sand"), Numerics())
    layout = make_layout((8, 8, 24, 24), (40, 36, 56, 60))
    scene = Scene(layout, "sand")
    (painting,) = painter([scene], [np.random.SeedSequence(0)])
    for box, rle in zip(layout.boxes.astype(int), painting.masks, strict=True):
        mask = coco_mask.decode(rle)
        assert mask.shape == (64, 64)
        x0, y0, x1, y1 = box
        assert mask.sum() == mask[y0:y1, x0:x1].sum() > 0
    painter.use_chunk(1)
    (again,) = painter([scene], [np.random.SeedSequence(0)])
    assert np.abs(again.image.astype(int) - painting.image).max() <= 2


def test_chosen_objects_are_generated_again(checkpoint: Path) -> None:
    """The far object is generated again behind the near one, on the same background."""
    spec = Spec(model=str(checkpoint), steps=2, window=32)
    painter: Any = spec.load(SceneSpec(background="sand"), Numerics())
    scene = Scene(make_layout((8, 8, 28, 28), (18, 18, 40, 44), (46, 46, 60, 60)), "sand")
    (old,) = painter([scene], [np.random.SeedSequence(0)])
    (new,) = painter.regenerate_objects([old], [scene], [[0]], [np.random.SeedSequence(1)])
    np.testing.assert_array_equal(new.parts.background, old.parts.background)
    assert list(new.parts.cutouts) == list(old.parts.cutouts)
    assert old.parts.cutouts[0] is not new.parts.cutouts[0]
    for number in (1, 2):
        assert new.parts.cutouts[number] is old.parts.cutouts[number]
    changed = (new.image != old.image).any(2)
    assert changed.any()
    assert not changed[:, 40:].any()
    near = old.parts.cutouts[1]
    in_front = near.weights[..., 0] == 1
    assert not changed[near.rows, near.columns][in_front].any()
    kept = painter.replace_objects(scene, old, new, [])
    np.testing.assert_array_equal(kept.image, old.image)
    assert kept.masks == old.masks
    taken = painter.replace_objects(scene, old, new, [0])
    np.testing.assert_array_equal(taken.image, new.image)
    assert taken.masks == new.masks


def test_a_verifier_repairs_only_the_objects_that_fail(checkpoint: Path) -> None:
    spec = Spec(model=str(checkpoint), steps=2, window=32)
    painter: Any = spec.load(SceneSpec(background="sand"), Numerics())
    layout = make_layout((8, 8, 28, 28), (44, 40, 60, 62))
    scene = Scene(layout, "sand")
    (painting,) = painter([scene], [np.random.SeedSequence(0)])
    calls: list[int] = []

    def verify(images: Any, layouts: Any) -> list[Verdict]:
        """Object 1 fails until it has been generated for the second time."""
        calls.append(len(images))
        scores = np.array([0.9, 0.8 if len(calls) >= 4 else 0.1], np.float32)
        return [Verdict(scores, None, None, np.zeros((0, 4), np.float32))]

    inspection = Inspection(ClassifierSpec(), verify, painter)
    (checked,) = inspection([scene], [painting], lambda k, number: np.random.SeedSequence(number))
    assert checked.actions == ("", "repaired")
    assert checked.repairs == 2
    assert calls == [1, 1, 1, 1, 1]
    changed = (checked.painting.image != painting.image).any(2)
    assert changed[36:, 38:].any()
    assert not changed[:34, :36].any()
    assert checked.painting.masks
    assert painting.masks
    assert checked.painting.masks[0] == painting.masks[0]


def test_an_inpainting_unet_reads_the_mask_and_the_masked_image(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint")
    widen(7, "StableDiffusionInpaintPipeline")(folder)
    change = f"pipeline.model={folder}"
    keys = ["pipeline=inpaint-tiny", change, "pipeline.steps=2", "pipeline.background_steps=2"]
    spec: Any = load_job("100dogs", [*keys, *FEW]).pipeline
    painter: Any = spec.load(SceneSpec(background="sand"), Numerics())
    pipeline = painter.pipeline
    inputs: list[Tensor] = []
    pipeline.unet.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    scene = Scene(make_layout((8, 8, 24, 24)), "sand")
    (painting,) = painter([scene], [np.random.SeedSequence(0)])
    assert painting.image.shape == (64, 64, 3)
    (crop,) = place_crops(scene.layout, spec.object_share, spec.outset, 32, 4)
    mask = torch.from_numpy(crop.draw_area(pipeline.factor) >= 0.5).float()
    assert {x.shape[1] for x in inputs} == {7}
    assert (inputs[0][:, 3] == 1).all()  # the background is generated everywhere
    assert torch.equal(inputs[-1][0, 3], mask)
    grey = pipeline.encode_images(np.full((1, 32, 32, 3), 127, np.uint8))
    y, x = (int(v) for v in mask.nonzero().float().mean(0))
    torch.testing.assert_close(inputs[-1][0, 4:, y, x], grey[0, :, y, x], atol=0.05, rtol=0.05)


def test_the_background_may_have_another_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "objects")
    widen(7, "StableDiffusionInpaintPipeline")(folder)
    keys = [
        "pipeline=inpaint-tiny",
        f"pipeline.model={folder}",
        f"pipeline.background_model={checkpoint}",
        "pipeline.steps=2",
        "pipeline.background_steps=2",
        *FEW,
    ]
    job = load_job("100dogs", keys)
    spec: Any = job.pipeline
    scene = Scene(make_layout((8, 8, 24, 24)), "sand")
    (painting,) = spec.load(SceneSpec(), Numerics())([scene], [np.random.SeedSequence(0)])
    alone = Spec(model=str(checkpoint), **spec.model_dump(exclude={"model", "background_model"}))
    (other,) = alone.load(SceneSpec(), Numerics())([scene], [np.random.SeedSequence(0)])
    np.testing.assert_array_equal(painting.parts.background, other.parts.background)
    assert not np.array_equal(painting.image, other.image)
    hashes = spec.fingerprint()
    assert hashes["background_model_sha256"] == alone.fingerprint()["model_sha256"]
    assert hashes["background_model_sha256"] != hashes["model_sha256"]
    assert str(checkpoint) in spec.licence()
    assert str(folder) in spec.licence()


def test_a_missing_checkpoint_of_the_background_is_named(checkpoint: Path) -> None:
    keys = ["pipeline=inpaint-tiny", "pipeline.background_model=nowhere", *FEW]
    with pytest.raises(ConfigError, match=r"background_model: model 'nowhere': no folder"):
        load_job("100dogs", keys)


def test_the_background_has_one_source(checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "sand.png")
    keys = [f"pipeline.background_model={checkpoint}", f"scene.backgrounds={tmp_path}"]
    with pytest.raises(ConfigError, match="omit one of the two"):
        load_job("100dogs", ["pipeline=inpaint-tiny", *keys, *FEW])


def test_another_scale_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"scale: 2\.0 is not 1"):
        load_job("100dogs", ["pipeline=inpaint-tiny", "pipeline.scale=2"])


def test_objects_are_decoded_with_the_statistics_of_their_own_background(
    pipeline: InpaintPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of two is the two alone; repairs and the user's images use statistics, too."""
    layouts = [make_layout((8, 8, 24, 24)), make_layout((30, 28, 52, 50))]

    def run(*numbers: int, statistics: str = "background", **options: Any) -> Any:
        return pipeline(
            [layouts[k] for k in numbers],
            "sand",
            num_inference_steps=2,
            statistics=statistics,  # type: ignore[arg-type]
            generator=[torch.Generator().manual_seed(k) for k in numbers],
            output_type="np",
            return_collages=True,
            **options,
        )

    images, collages = run(0, 1)
    assert all(collage.statistics for collage in collages)
    for k in (0, 1):
        np.testing.assert_array_equal(run(k)[0][0], images[k])
    own, plain = run(0, 1, statistics="object")
    assert (own != images).any()
    assert all(collage.statistics is None for collage in plain)
    repaired, kept = run(0, 1, collages=collages, chosen=[[0], [0]])
    assert [each.statistics for each in kept] == [each.statistics for each in collages]
    without = run(0, 1, collages=plain, chosen=[[0], [0]], statistics="object")[0]
    assert (repaired != without).any()
    pictures = np.stack([collage.background for collage in collages])
    painted, measured = run(0, 1, pictures=pictures)
    assert all(collage.statistics for collage in measured)
    assert (painted != run(0, 1, pictures=pictures, statistics="object")[0]).any()
