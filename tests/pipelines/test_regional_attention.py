"""Regional attention over layouts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from synthgen.layouts.base import Layout
from synthgen.pipelines.base import IncompatibleLayoutError, Numerics
from synthgen.pipelines.diffusion.mixture import Mixture
from synthgen.pipelines.regional_attention import Spec
from synthgen.pipelines.regional_attention.pipeline import RegionalAttentionPipeline
from synthgen.scenes.scene import Scene, SceneSpec

SIDE = 48


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> RegionalAttentionPipeline:
    loaded = RegionalAttentionPipeline.from_pretrained(checkpoint, use_safetensors=True)
    loaded.scheduler = DDIMScheduler(clip_sample=False)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def layout(seed: int, boxes: int, side: int = SIDE, phrase: str = "a {} dog") -> Layout:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, side - 16, (boxes, 2))
    corners = np.concatenate([low, low + rng.uniform(4, 16, (boxes, 2))], 1).astype(np.float32)
    return Layout(
        side,
        side,
        corners,
        ("dog",) * boxes,
        tuple(phrase.format(("brown", "white")[i % 2]) for i in range(boxes)),
    )


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def latents(
    pipeline: RegionalAttentionPipeline, batch: list[Layout], *seeds: int, **options: Any
) -> Tensor:
    defaults = {
        "background": "sand",
        "num_inference_steps": 3,
        "generator": generators(*seeds),
        "output_type": "latent",
    }
    got = pipeline(batch, **{**defaults, **options})
    assert isinstance(got, Tensor)
    return got


@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5])
def test_equal_prompts_everywhere_are_plain_text_to_image(
    pipeline: RegionalAttentionPipeline, guidance: float
) -> None:
    of = layout(0, 5, phrase="sand")
    got = latents(pipeline, [of], 0, region_prompt="{phrase}", guidance_scale=guidance)
    with torch.no_grad():
        words = {"encoder_hidden_states": pipeline.encode_prompts(["sand", ""])}
        noise = pipeline.noise([of], generators(0))
        plain = Mixture(
            pipeline.cover(0, (SIDE, SIDE), (0, 1), guidance), words, noise.shape, 10**6
        )
        wanted = pipeline.denoise(noise, [plain] * 3)
    assert (got - wanted).norm() / wanted.norm() < 1e-5


@pytest.mark.parametrize("tile", [None, 24])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_an_image_does_not_depend_on_its_batch(
    pipeline: RegionalAttentionPipeline, guidance: float, tile: int | None
) -> None:
    batch = [layout(i, n) for i, n in enumerate((3, 0, 100, 1))]
    together = latents(pipeline, batch, 0, 1, 2, 3, guidance_scale=guidance, tile=tile)
    for i in range(4):
        alone = latents(pipeline, [batch[i]], i, guidance_scale=guidance, tile=tile)
        assert (together[i] - alone[0]).norm() / alone.norm() < 1e-4


def test_a_step_takes_one_pass_whatever_the_number_of_boxes(
    pipeline: RegionalAttentionPipeline,
) -> None:
    passes: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    for boxes in (1, 100):
        latents(pipeline, [layout(0, boxes)], 0, guidance_scale=1.0)
    hook.remove()
    assert passes == [1] * 6


def test_the_prompt_of_every_box_has_an_effect(pipeline: RegionalAttentionPipeline) -> None:
    whole = layout(0, 100)
    base = latents(pipeline, [whole], 0)
    for i in (0, 50, 99):
        phrases = list(whole.phrases or ())
        phrases[i] = "a black cat"
        assert not torch.equal(latents(pipeline, [whole.with_phrases(tuple(phrases))], 0), base)


def test_the_unet_has_its_usual_attention_afterwards(pipeline: RegionalAttentionPipeline) -> None:
    before = pipeline.unet.attn_processors
    latents(pipeline, [layout(0, 2)], 0)
    assert {n: type(p) for n, p in pipeline.unet.attn_processors.items()} == {
        n: type(p) for n, p in before.items()
    }


def test_an_error_names_what_cannot_be_generated(pipeline: RegionalAttentionPipeline) -> None:
    with pytest.raises(
        IncompatibleLayoutError,
        match=r"boxes\[0\]: \[40.0, 0.0, 60.0, 20.0\] is not inside the canvas",
    ):
        pipeline([Layout(SIDE, SIDE, np.array([[40, 0, 60, 20]], np.float32), ("dog",))])


def test_a_recipe_generates_an_image(checkpoint: Path) -> None:
    spec = Spec(model=str(checkpoint), steps=2, tile=24, margin=0.2)
    painted = spec.load(SceneSpec(), Numerics())(
        [Scene(layout(0, 3), "sand")], [np.random.SeedSequence(0)]
    )
    assert painted[0].image.shape == (SIDE, SIDE, 3)
