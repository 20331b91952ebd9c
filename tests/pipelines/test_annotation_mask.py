"""Annotations as a mask: img2img without training, and the input of a trained checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from synthgen.config import ConfigError, load_job
from synthgen.layouts.base import Layout
from synthgen.pipelines.annotation_mask.pipeline import AnnotationMaskPipeline
from synthgen.pipelines.diffusion.box_annotations import draw_annotations, list_corners
from synthgen.pipelines.diffusion.schedulers import SCHEDULERS
from tests.pipelines.stub import ddim, embedding, stub_unet

SIDE = 48
STEPS = 8


def load(checkpoint: Path) -> AnnotationMaskPipeline:
    pipeline = AnnotationMaskPipeline.from_pretrained(checkpoint, use_safetensors=True)
    pipeline.scheduler = DDIMScheduler(clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> AnnotationMaskPipeline:
    return load(checkpoint)


def layout(seed: int, boxes: int = 3) -> Layout:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 28, (boxes, 2))
    corners = np.concatenate([low, low + rng.uniform(4, 20, (boxes, 2))], 1).astype(np.float32)
    return Layout(SIDE, SIDE, corners, ("dog",) * boxes)


def latents(
    pipeline: AnnotationMaskPipeline, batch: list[Layout], *seeds: int, **options: Any
) -> Tensor:
    generator = [torch.Generator().manual_seed(s) for s in seeds]
    defaults = {
        "background": "sand",
        "num_inference_steps": STEPS,
        "generator": generator,
        "output_type": "latent",
    }
    got = pipeline(batch, **{**defaults, **options})
    assert isinstance(got, Tensor)
    return got


def mask_latents(pipeline: AnnotationMaskPipeline, of: Layout) -> Tensor:
    with torch.no_grad():
        return pipeline.encode_images(draw_annotations([list_corners(of, {})], (SIDE, SIDE), 90))[0]


@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5])
@pytest.mark.parametrize(("strength", "first"), [(0.75, 2), (0.5, 4), (0.01, 7)])
def test_denoising_starts_from_the_noised_mask(
    pipeline: AnnotationMaskPipeline, strength: float, first: int, guidance: float
) -> None:
    """The result is that of DDIM in float64.

    At the first step that runs, z = sqrt(a) mask + sqrt(1 - a) noise.
    """
    of = layout(0)
    with stub_unet(pipeline) as stub:
        got = (
            latents(pipeline, [of], 5, strength=strength, guidance_scale=guidance)[0]
            .double()
            .numpy()
        )
        noise = (
            torch.randn((3, 24, 24), generator=torch.Generator().manual_seed(5)).double().numpy()
        )
        pipeline.scheduler.set_timesteps(STEPS)
        a = float(
            pipeline.scheduler.alphas_cumprod.double()[int(pipeline.scheduler.timesteps[first])]
        )
        start = np.sqrt(a) * mask_latents(pipeline, of).double().numpy() + np.sqrt(1 - a) * noise

        def guided(z: np.ndarray, i: int, t: int) -> np.ndarray:
            cond, uncond = (stub.exact(z, embedding(pipeline, p)) for p in ("3 dog, sand", ""))
            return uncond + guidance * (cond - uncond)

        wanted = ddim(start, STEPS, guided, lambda z, i, alpha: z, pipeline.scheduler, first)
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 1e-5


def test_full_strength_starts_from_noise(pipeline: AnnotationMaskPipeline) -> None:
    one, other = (latents(pipeline, [layout(seed)], 0, strength=1.0) for seed in (0, 1))
    assert torch.equal(one, other)


@pytest.mark.parametrize("scheduler", ["dpm++", "unipc", "ddim", "euler"])
def test_an_image_does_not_depend_on_its_batch(checkpoint: Path, scheduler: str) -> None:
    pipeline = load(checkpoint)
    pipeline.scheduler = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config)
    batch = [layout(i, n) for i, n in enumerate((3, 0, 100, 1))]
    together = latents(pipeline, batch, 0, 1, 2, 3)
    for i in range(4):
        alone = latents(pipeline, [batch[i]], i)
        assert (together[i] - alone[0]).norm() / alone.norm() < 1e-4


def test_a_trained_checkpoint_reads_the_mask_beside_its_latents(checkpoint: Path) -> None:
    pipeline = load(checkpoint)
    torch.manual_seed(0)
    pipeline.unet = UNet2DConditionModel.from_config({**pipeline.unet.config, "in_channels": 6})
    assert pipeline.trained
    inputs: list[Tensor] = []
    pipeline.unet.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    latents(pipeline, [layout(0), layout(1)], 0, 1)
    torch.testing.assert_close(
        inputs[0][:1, 3:], mask_latents(pipeline, layout(0))[None], atol=1e-5, rtol=1e-4
    )
    noise = torch.randn((3, 24, 24), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(inputs[0][0, :3], noise)  # it starts from noise
    assert len(inputs) == STEPS  # and runs every step: one chunk for both images and branches


def test_one_tile_equals_the_whole_canvas(pipeline: AnnotationMaskPipeline) -> None:
    whole, one, four = (
        latents(pipeline, [layout(0)], 0, tile=tile) for tile in (None, SIDE, SIDE // 2)
    )
    assert torch.equal(whole, one)
    assert not torch.equal(whole, four)


def test_the_tuples_of_the_source_document_are_accepted(pipeline: AnnotationMaskPipeline) -> None:
    tuples = [(0.0, 4.0, 10.0, 8.0, 18), (35.0, 40.0, 48.0, 48.0, 18)]
    boxes = Layout(SIDE, SIDE, np.array([t[:4] for t in tuples], np.float32), ("dog", "dog"))
    given = latents(pipeline, [layout(0, 0)], 0, annotations=[tuples], caption="dogs")
    assert torch.equal(given, latents(pipeline, [boxes], 0, caption="dogs"))


@pytest.mark.parametrize("strength", [0.0, 1.5])
def test_a_strength_outside_its_range_is_refused(
    pipeline: AnnotationMaskPipeline, strength: float
) -> None:
    with pytest.raises(ValueError, match=rf"strength: {strength:g} must be in \(0, 1\]"):
        latents(pipeline, [layout(0)], 0, strength=strength)


def test_an_error_names_the_category_beyond_the_range() -> None:
    with pytest.raises(
        ConfigError, match="label_range: 10 must be at least 18, the category id of 'dog'"
    ):
        load_job("100dogs", ["pipeline=annotation-mask-tiny", "pipeline.label_range=10"])
