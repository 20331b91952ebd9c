"""Grounded windows over layouts, compared with diffusers' own GLIGEN pipeline."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionGLIGENPipeline
from torch import Tensor

from synthgen.config import ConfigError, load_job
from synthgen.engine.worker import sample_scene
from synthgen.layouts.base import Layout
from synthgen.pipelines.base import IncompatibleLayoutError, Numerics
from synthgen.pipelines.grounded import Spec
from synthgen.pipelines.grounded.pipeline import GroundedPipeline
from synthgen.pipelines.mixture.pipeline import MixturePipeline
from synthgen.scenes.scene import Scene, SceneSpec
from synthgen.verification.detector import Spec as DetectorSpec
from synthgen.verification.detector.verifier import DetectorVerifier
from tests.conftest import save_tiny_checkpoint
from tests.pipelines.diffusion.test_grounding import gated_unet

SIDE = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint with active gated layers.

    It has 4 latent channels, because diffusers' own pipeline supports no other number.
    """
    path = tmp_path_factory.mktemp("gligen")
    pipeline = MixturePipeline.from_pretrained(
        save_tiny_checkpoint(path / "plain", 4, 1), use_safetensors=True
    )
    pipeline.unet = gated_unet(4)
    pipeline.save_pretrained(path / "gated")
    return path / "gated"


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> GroundedPipeline:
    loaded = GroundedPipeline.from_pretrained(folder, use_safetensors=True)
    loaded.scheduler = DDIMScheduler(clip_sample=False)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def layout(seed: int, boxes: int, side: int = SIDE) -> Layout:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, side - 16, (boxes, 2))
    corners = np.concatenate([low, low + rng.uniform(4, 16, (boxes, 2))], 1).astype(np.float32)
    names = tuple(("dog", "cat")[i % 2] for i in range(boxes))
    return Layout(side, side, corners, names, tuple(f"a white {name}" for name in names))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def latents(pipeline: GroundedPipeline, batch: list[Layout], *seeds: int, **options: Any) -> Tensor:
    defaults = {
        "background": "sand",
        "num_inference_steps": 4,
        "generator": generators(*seeds),
        "output_type": "latent",
    }
    got = pipeline(batch, **{**defaults, **options})
    assert isinstance(got, Tensor)
    return got


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("beta", "steps"), [(1.0, 4), (0.5, 4), (0.3, 4), (0.7, 6)])
def test_one_window_equals_the_pipeline_of_diffusers(
    pipeline: GroundedPipeline, beta: float, steps: int
) -> None:
    theirs = StableDiffusionGLIGENPipeline(
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        unet=pipeline.unet,
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    of = layout(0, 5)
    noise = pipeline.noise([of], generators(3))
    with torch.no_grad():
        wanted = theirs(
            "3 dog, 2 cat, sand",
            height=SIDE,
            width=SIDE,
            num_inference_steps=steps,
            guidance_scale=3.0,
            latents=noise,
            eta=0.0,
            gligen_phrases=list(of.phrases or ()),
            gligen_boxes=(of.boxes / SIDE).tolist(),
            gligen_scheduled_sampling_beta=beta,
            output_type="latent",
        ).images
    options: dict[str, Any] = {
        "guidance_scale": 3.0,
        "window": SIDE,
        "stages": (beta, 0.0),
        "num_inference_steps": steps,
    }
    got, up = (latents(pipeline, [of], 3, stages_rounding=way, **options) for way in ("down", "up"))
    assert (got - wanted).norm() / wanted.norm() < 1e-5
    assert torch.equal(got, up) == (beta * steps == round(beta * steps))


@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5])
def test_an_image_does_not_depend_on_its_batch(pipeline: GroundedPipeline, guidance: float) -> None:
    batch = [layout(i, n) for i, n in enumerate((3, 0, 40, 1))]
    options: dict[str, Any] = {
        "guidance_scale": guidance,
        "window": 24,
        "max_boxes": 8,
        "stages": (0.5, 0.5),
    }
    together = latents(pipeline, batch, 0, 1, 2, 3, **options)
    for i in range(4):
        alone = latents(pipeline, [batch[i]], i, **options)
        assert (together[i] - alone[0]).norm() / alone.norm() < 1e-4


def test_boxes_have_a_local_effect_and_only_while_the_gates_are_on(
    pipeline: GroundedPipeline,
) -> None:
    bare = layout(0, 0)
    one = Layout(SIDE, SIDE, np.array([[2, 2, 14, 14]], np.float32), ("dog",), ("a white dog",))
    options: dict[str, Any] = {
        "caption": "sand",
        "window": 16,
        "overlap": 0.0,
        "num_inference_steps": 1,
        "stages": (1.0, 0.0),
    }
    changed = (
        (latents(pipeline, [one], 0, **options) - latents(pipeline, [bare], 0, **options)).abs()
        > 1e-5
    ).any(1)[0]
    assert changed[:8, :8].any()
    assert not changed[8:].any()
    assert not changed[:, 8:].any()
    off = {**options, "stages": (0.0, 0.0)}
    torch.testing.assert_close(
        latents(pipeline, [one], 0, **off), latents(pipeline, [bare], 0, **off)
    )


def test_a_window_without_boxes_does_not_use_the_gated_layers(
    pipeline: GroundedPipeline,
) -> None:
    """The negative prompt still uses them at a guidance other than 1, as in diffusers."""
    options: dict[str, Any] = {"window": 24, "stages": (1.0, 0.0), "guidance_scale": 1.0}
    on = latents(pipeline, [layout(0, 0)], 0, **options)
    assert torch.equal(
        on, latents(pipeline, [layout(0, 0)], 0, **{**options, "stages": (0.0, 0.0)})
    )
    options["guidance_scale"] = 2.0
    on = latents(pipeline, [layout(0, 0)], 0, **options)
    assert not torch.equal(
        on, latents(pipeline, [layout(0, 0)], 0, **{**options, "stages": (0.0, 0.0)})
    )


@pytest.mark.parametrize("boxes", [0, 1, 100])
def test_any_number_of_boxes(pipeline: GroundedPipeline, boxes: int) -> None:
    images = pipeline(
        [layout(0, boxes, 100)],
        num_inference_steps=1,
        generator=generators(0),
        max_boxes=4,
        output_type="np",
    )
    assert np.asarray(images).shape == (1, 100, 100, 3)


def test_an_error_names_what_cannot_be_generated(
    pipeline: GroundedPipeline, checkpoint: Path
) -> None:
    plain = GroundedPipeline.from_pretrained(checkpoint, use_safetensors=True)
    with pytest.raises(IncompatibleLayoutError, match="unet: it has no gated layers"):
        plain([layout(0, 1)])
    with pytest.raises(IncompatibleLayoutError, match="canvas width 47 px must be a multiple of 2"):
        pipeline([Layout(47, 48, np.zeros((0, 4), np.float32), ())])


def test_a_recipe_generates_images_and_its_errors_are_named(folder: Path, checkpoint: Path) -> None:
    spec = Spec(model=str(folder), steps=2)
    painted = spec.load(SceneSpec(), Numerics())(
        [Scene(layout(0, 3), "sand")], [np.random.SeedSequence(0)]
    )
    assert painted[0].image.shape == (SIDE, SIDE, 3)
    with pytest.raises(ConfigError, match=r"model: .* has no gated layers"):
        load_job("100dogs", ["pipeline=grounded-tiny", f"pipeline.model={checkpoint}"])
    with pytest.raises(
        ConfigError,
        match=r"pipeline.stages: 0.3 of 3 steps is less than a step, so no box would be read",
    ):
        load_job(
            "100dogs", ["pipeline=grounded-tiny", "pipeline.stages=[0.3, 0]", "pipeline.steps=3"]
        )
    load_job(
        "100dogs",
        [
            "pipeline=grounded-tiny",
            "pipeline.stages=[0.3, 0]",
            "pipeline.steps=3",
            "pipeline.stages_rounding=up",
        ],
    )
    load_job("100dogs", ["pipeline=grounded-tiny", "pipeline.stages=[0, 0]", "pipeline.steps=3"])
    with pytest.raises(
        ConfigError,
        match=r"stages: \[0.7, 0.7\] must be two shares of the steps, together at most 1",
    ):
        load_job("100dogs", ["pipeline=grounded-tiny", "pipeline.stages=[0.7, 0.7]"])


@pytest.mark.slow
def test_the_embedded_checkpoint_generates_dogs_in_their_boxes() -> None:
    """The boxes of another image contain fewer of them."""
    small = [
        "layout.canvas=[224, 224]",
        "layout.objects={dog: 5}",
        "layout.size=[56, 72]",
        "layout.gap=6",
    ]
    job = load_job("100dogs", ["pipeline=grounded-tiny", *small])
    scenes = [sample_scene(job, i) for i in range(4)]
    painter: Any = job.pipeline.load(job.scene, Numerics())
    images = [p.image for p in painter(scenes, [np.random.SeedSequence(i) for i in range(4)])]
    layouts = [scene.layout for scene in scenes]
    right, wrong = (share_of_good_boxes(images, of) for of in (layouts, layouts[1:] + layouts[:1]))
    assert right > 0.5
    assert wrong < 0.5 * right


def share_of_good_boxes(images: list[Any], layouts: list[Layout]) -> float:
    spec = DetectorSpec()
    verdicts = DetectorVerifier(spec, "cpu")(images, layouts)
    return 1 - float(
        np.mean(
            np.concatenate(
                [spec.find_failed_boxes(v, of) for v, of in zip(verdicts, layouts, strict=True)]
            )
        )
    )
