"""The mixture pipeline over layouts, with tiny random checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from synthgen.layouts.base import Layout
from synthgen.layouts.scatter import Spec as ScatterSpec
from synthgen.pipelines.base import IncompatibleLayoutError, Numerics
from synthgen.pipelines.diffusion import pipeline as diffusion_pipeline
from synthgen.pipelines.diffusion.schedulers import SCHEDULERS
from synthgen.pipelines.diffusion.windows import place_object_windows
from synthgen.pipelines.mixture import Spec
from synthgen.pipelines.mixture.pipeline import MixturePipeline
from synthgen.scenes.scene import SceneSpec
from tests.conftest import save_tiny_checkpoint

SCENES = SceneSpec(
    object=("a brown {category}", "a white {category}"), background="a field of grass"
)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> MixturePipeline:
    loaded = MixturePipeline.from_pretrained(checkpoint, use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def layouts(n: int, boxes: int = 3, side: int = 64) -> list[Layout]:
    spec = ScatterSpec(canvas=(side, side), objects={"dog": boxes}, size=(16, 20), gap=2)
    drawn = [spec.sample(np.random.default_rng(i)) for i in range(n)]
    return [SCENES.draw(layout, np.random.default_rng(i)).layout for i, layout in enumerate(drawn)]


def layout_of(width: int, height: int, *boxes: tuple[int, int, int, int]) -> Layout:
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return Layout(width, height, corners, ("dog",) * len(boxes))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def latents(
    pipeline: MixturePipeline, batch: list[Layout], *seeds: int, steps: int = 3, **options: Any
) -> Tensor:
    got = pipeline(
        batch,
        background="sand",
        num_inference_steps=steps,
        generator=generators(*seeds),
        output_type="latent",
        **options,
    )
    assert isinstance(got, Tensor)
    return got


@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5])
def test_an_image_does_not_depend_on_its_batch(pipeline: MixturePipeline, guidance: float) -> None:
    batch = layouts(4)
    together = latents(pipeline, batch, 0, 1, 2, 3, guidance_scale=guidance)
    for i in range(4):
        alone = latents(pipeline, [batch[i]], i, guidance_scale=guidance)
        assert (together[i] - alone[0]).norm() / alone.norm() < 1e-4


def test_only_steps_in_the_interval_are_guided(pipeline: MixturePipeline) -> None:
    def generate(**options: Any) -> Tensor:
        return latents(pipeline, layouts(1), 0, steps=4, **options)

    plain = generate(guidance_scale=1.0)
    guided = generate(guidance_scale=5.0)
    assert torch.equal(generate(guidance_scale=5.0, guidance_interval=(0.0, 0.0)), plain)
    assert torch.equal(generate(guidance_scale=5.0, guidance_interval=(0.0, 1.0)), guided)
    rows: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    half = generate(
        guidance_scale=5.0, guidance_interval=(0.25, 0.75), chunk=1000, background_window=64
    )
    hook.remove()
    assert not torch.equal(half, plain)
    assert not torch.equal(half, guided)
    steps = np.array(rows).reshape(4, -1).sum(1)
    assert steps.tolist() == [4, 8, 8, 4]  # three boxes and one tile; twice that where guided


def pictures(n: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("scheduler", ["dpm++", "ddim", "euler", "lms", "unipc"])
def test_images_do_not_change_outside_the_windows(checkpoint: Path, scheduler: str) -> None:
    pipeline = MixturePipeline.from_pretrained(checkpoint, use_safetensors=True)
    pipeline.scheduler = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    batch = layouts(2, boxes=1)
    own = pictures(2)
    images = pipeline(
        batch,
        num_inference_steps=3,
        pictures=own,
        window=16,
        generator=generators(0, 1),
        output_type="np",
    )
    for image, picture, layout in zip(images, own, batch, strict=True):
        ((x0, y0, x1, y1),) = (
            place_object_windows(layout.boxes, (64, 64), pipeline.factor, pipeline.multiple, 8, 0.1)
            * pipeline.factor
        )
        outside = np.ones((64, 64), bool)
        outside[y0:y1, x0:x1] = False
        assert outside.sum() > 1000
        np.testing.assert_array_equal(image[outside], picture[outside])
        bx0, by0, bx1, by1 = layout.boxes[0].astype(int)
        assert np.abs(image[by0:by1, bx0:bx1].astype(int) - picture[by0:by1, bx0:bx1]).mean() > 10


def test_a_layout_without_boxes_does_not_change_the_image(pipeline: MixturePipeline) -> None:
    own = pictures(1)
    images = pipeline(
        layouts(1, boxes=0),
        num_inference_steps=2,
        pictures=own,
        generator=generators(0),
        output_type="np",
    )
    np.testing.assert_array_equal(images, own)


def test_images_must_match_the_layouts(pipeline: MixturePipeline) -> None:
    with pytest.raises(
        IncompatibleLayoutError,
        match=r"`pictures`: shape \(1, 64, 64, 3\) must be \(2, 64, 64, 3\)",
    ):
        pipeline(layouts(2), pictures=pictures(1))


def test_the_chunk_does_not_change_the_image(
    pipeline: MixturePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusion_pipeline, "LEAST_CELLS", 1)
    rows: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    small = latents(pipeline, layouts(2), 0, 1, chunk=1)
    assert max(rows) == 1
    large = latents(pipeline, layouts(2), 0, 1, chunk=64)
    hook.remove()
    assert max(rows) > 1
    assert (small - large).norm() / large.norm() < 1e-4


def test_a_chunk_holds_more_small_windows(
    pipeline: MixturePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = int(pipeline.unet.config.sample_size)
    assert pipeline.cells_at_once(3) == 3 * diffusion_pipeline.LEAST_CELLS > 3 * native**2
    monkeypatch.setattr(diffusion_pipeline, "LEAST_CELLS", native**2 - 1)
    assert pipeline.cells_at_once(3) == 3 * native**2


def test_seed_and_prompt_change_the_image(pipeline: MixturePipeline) -> None:
    base = latents(pipeline, layouts(1), 0)
    torch.testing.assert_close(base, latents(pipeline, layouts(1), 0))
    assert (base - latents(pipeline, layouts(1), 1)).abs().max() > 0.1
    black = [layouts(1)[0].with_phrases(("a black dog",) * 3)]
    assert (base - latents(pipeline, black, 0)).abs().max() > 1e-4


def test_a_box_changes_only_its_window(pipeline: MixturePipeline) -> None:
    """After one step, the merged noise outside the box's window is that of the background."""
    box = Layout(64, 64, np.array([[4, 4, 20, 20]], np.float32), ("dog",))
    bare = Layout(64, 64, np.zeros((0, 4), np.float32), ())
    one, none = (latents(pipeline, [layout], 0, steps=1) for layout in (box, bare))
    changed = ((one - none).abs() > 1e-6).any(1)[0]
    assert changed[2:10, 2:10].any()
    assert not changed[16:].any()
    assert not changed[:, 16:].any()


def test_an_outset_generates_the_object_of_a_larger_box(pipeline: MixturePipeline) -> None:
    small = layout_of(64, 64, (20, 16, 40, 36))
    larger = layout_of(64, 64, (20, 16, 40, 41))
    extended = latents(pipeline, [small], 0, outset=(0, 0, 0, 0.25))
    torch.testing.assert_close(extended, latents(pipeline, [larger], 0))
    assert (extended - latents(pipeline, [small], 0)).abs().max() > 1e-4


@pytest.mark.parametrize("count", [0, 1, 100])
def test_any_number_of_boxes(pipeline: MixturePipeline, count: int) -> None:
    spec = ScatterSpec(canvas=(256, 256), objects={"dog": count}, size=(8, 16), gap=1)
    images = pipeline(
        [spec.sample(np.random.default_rng(0))],
        num_inference_steps=1,
        generator=generators(0),
        output_type="pil",
    )
    assert isinstance(images, list)
    assert isinstance(images[0], Image.Image)
    assert images[0].size == (256, 256)


def test_a_callback_receives_and_changes_latents(pipeline: MixturePipeline) -> None:
    steps = []

    def callback(pipe: object, i: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(i)
        return {"latents": torch.zeros_like(tensors["latents"])} if i == 2 else {}

    assert (latents(pipeline, layouts(1), 0, callback_on_step_end=callback) == 0).all()
    assert steps == [0, 1, 2]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (layout_of(65, 64), "canvas width 65 px must be a multiple of 2 and at least 4"),
        (layout_of(64, 2), "canvas height 2 px must be a multiple of 2 and at least 4"),
        (
            layout_of(64, 64, (50, 1, 70, 20)),
            r"layouts\[0\].boxes\[0\]: \[50.0, 1.0, 70.0, 20.0\] is not inside the canvas",
        ),
        (
            layout_of(64, 64, (1, 1, 9, 2)),
            r"layouts\[0\].boxes\[0\]: \[1.0, 1.0, 9.0, 2.0\] is smaller than a latent cell "
            r"\(2 px\)",
        ),
    ],
)
def test_an_error_names_what_cannot_be_generated(
    pipeline: MixturePipeline, layout: Layout, message: str
) -> None:
    with pytest.raises(IncompatibleLayoutError, match=message):
        pipeline([layout], num_inference_steps=1)


def test_a_batch_has_one_canvas_size(pipeline: MixturePipeline) -> None:
    with pytest.raises(
        IncompatibleLayoutError, match=r"one canvas size, got \[\(32, 32\), \(64, 64\)\]"
    ):
        pipeline([*layouts(1), *layouts(1, 0, 32)], num_inference_steps=1)


def test_prompts_must_match_layouts(pipeline: MixturePipeline) -> None:
    with pytest.raises(ValueError, match="2 given for 3 layouts"):
        pipeline(layouts(3), background=["a", "b"], num_inference_steps=1)


@pytest.mark.parametrize(("channels", "halvings"), [(4, 3), (16, 1), (6, 2)])
def test_other_factors_and_latent_channels(tmp_path: Path, channels: int, halvings: int) -> None:
    spec = Spec(model=str(save_tiny_checkpoint(tmp_path, channels, halvings)), steps=2)
    sampler = ScatterSpec(canvas=(160, 96), objects={"dog": 3}, size=(20, 40), gap=2)
    assert spec.check(sampler, SCENES) == []
    painter: Any = spec.load(SCENES, Numerics())
    scenes = [
        SCENES.draw(sampler.sample(np.random.default_rng(i)), np.random.default_rng(i))
        for i in range(2)
    ]
    paintings = painter(scenes, [np.random.SeedSequence(i) for i in range(2)])
    assert [p.image.shape for p in paintings] == [(96, 160, 3)] * 2
    assert painter.pipeline.factor == 2**halvings


@pytest.mark.parametrize("scheduler", ["dpm++", "unipc", "ddim", "euler", "lms", None])
def test_every_scheduler_generates_an_image(checkpoint: Path, scheduler: str | None) -> None:
    spec = Spec.model_validate({"model": str(checkpoint), "steps": 3, "scheduler": scheduler})
    layout = layouts(1)[0]
    scene = SCENES.draw(layout, np.random.default_rng(0))
    first, second = (
        spec.load(SCENES, Numerics())([scene], [np.random.SeedSequence(0)])[0].image
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert first.std() > 0


@pytest.mark.parametrize("mask", ["box", "gaussian", "quartic", "constant"])
def test_every_mask_generates_an_image(pipeline: MixturePipeline, mask: str) -> None:
    assert torch.isfinite(latents(pipeline, layouts(1), 0, mask=mask)).all()


def test_a_canvas_that_does_not_suit_the_checkpoint_is_refused_before_loading(
    checkpoint: Path,
) -> None:
    sampler = ScatterSpec(canvas=(101, 100), objects={"dog": 1}, size=(20, 40))
    assert Spec(model=str(checkpoint)).check(sampler, SCENES) == [
        f"model: canvas width 101 px must be a multiple of 2 and at least 4 for {checkpoint}"
    ]


def test_large_canvases_decode_in_tiles_without_seams() -> None:
    """With the embedded autoencoder, tiled and whole decoding agree, also where tiles meet."""
    pipeline = MixturePipeline.from_pretrained(
        str(Path(__file__).parents[2] / "synthgen/weights/synthgen-tiny"), use_safetensors=True
    )
    from synthgen.pipelines.paste import Spec as PasteSpec

    sampler = ScatterSpec(canvas=(640, 640), objects={"dog": 20}, size=(56, 88))
    scene = SCENES.draw(sampler.sample(np.random.default_rng(0)), np.random.default_rng(0))
    pixels = PasteSpec().load(SCENES, Numerics())([scene], [np.random.SeedSequence(0)])[0].image
    x = torch.from_numpy(pixels[None].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    vae = pipeline.vae.float()
    with torch.no_grad():
        vae.disable_tiling()
        z = vae.encode(x).latent_dist.mode()
        whole = vae.decode(z).sample
        vae.enable_tiling()
        # the embedded autoencoder uses tiles only from 1024 px on
        vae.tile_sample_min_size = 384
        vae.tile_latent_min_size = 96
        tiled = vae.decode(z).sample
    error = (tiled - whole).abs().mean((0, 1, 2))  # a column
    assert error.mean() < 0.04  # a narrow last tile has other statistics for the group norms
    step = (tiled[..., 1:] - tiled[..., :-1]).abs().mean((0, 1, 2))
    wanted = (whole[..., 1:] - whole[..., :-1]).abs().mean((0, 1, 2))
    assert (step - wanted).abs().max() < 0.03
