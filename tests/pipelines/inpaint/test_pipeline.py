"""The inpainting pipeline over layouts, with tiny random checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from synthgen.config import ConfigError, load_job
from synthgen.layouts.base import Layout
from synthgen.layouts.scatter import Spec as ScatterSpec
from synthgen.pipelines.base import IncompatibleLayoutError, Numerics
from synthgen.pipelines.inpaint import Spec
from synthgen.pipelines.inpaint import pipeline as inpaint
from synthgen.pipelines.inpaint.crops import place_crops
from synthgen.pipelines.inpaint.pipeline import InpaintPipeline, exclude_objects, plan_schedule
from synthgen.scenes.scene import Scene, SceneSpec
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
    images, owners = generate(pipeline, [layout], 0, return_owners=True)
    assert images.shape == (1, 64, 64, 3)
    assert images.dtype == np.uint8
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

    def record(latents: Tensor) -> NDArray[np.uint8]:
        decoded.append(latents)
        return decode(latents)

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
    _, owners = generate(pipeline, [layout], 0, return_owners=True, object_attempts=5)
    assert attempts == [0, 1, 0, 0]
    assert set(np.unique(owners)) == {-1, 0, 1}
    attempts.clear()
    monkeypatch.setattr(inpaint, "find_object", lambda crop, *_: attempts.append(crop.number))
    _, owners = generate(pipeline, [layout], 0, return_owners=True)
    assert attempts == [0, 1, 0, 1]
    assert set(np.unique(owners)) == {-1, 0, 1}  # their areas are pasted as they are


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

    def decode(latents: Tensor) -> NDArray[np.uint8]:
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
    nowhere = ((slice(0), slice(0)), np.zeros((0, 0), bool))
    monkeypatch.setattr(inpaint, "find_object", lambda crop, before, after: found)
    monkeypatch.setattr(inpaint, "paste_object", lambda *arguments: nowhere)
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
    assert exclude_objects(negative, categories) == expected


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
    assert not hasattr(painter, "inpaint_boxes")
    painter.use_chunk(1)
    (again,) = painter([scene], [np.random.SeedSequence(0)])
    assert np.abs(again.image.astype(int) - painting.image).max() <= 2


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


def test_another_scale_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"scale: 2\.0 is not 1"):
        load_job("100dogs", ["pipeline=inpaint-tiny", "pipeline.scale=2"])
