"""Conditions of prompts for Stable Diffusion, SDXL and distilled checkpoints; LoRAs."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from synthgen.config import ConfigError, load_job
from synthgen.layouts.base import Layout
from synthgen.pipelines.annotation_tokens.pipeline import AnnotationTokensPipeline
from synthgen.pipelines.base import IncompatibleLayoutError, ModelNotFoundError, Numerics
from synthgen.pipelines.diffusion.mixture import Mixture
from synthgen.pipelines.diffusion.pipeline import LatentPipeline, load_pipeline
from synthgen.pipelines.diffusion.sources import find_lora
from synthgen.pipelines.diffusion.text_encoding import CACHED_SETS
from synthgen.pipelines.mixture import Spec as MixtureSpec
from synthgen.pipelines.mixture.pipeline import MixturePipeline
from synthgen.pipelines.regional_attention.pipeline import RegionalAttentionPipeline
from synthgen.scenes.scene import Scene, SceneSpec

SIDE = 16  # px, 8 cells: the size of the tiny checkpoints' windows


def layout(n: int, side: int = SIDE) -> Layout:
    rng = np.random.default_rng(n)
    low = rng.uniform(0, side - 8, (n, 2))
    boxes = np.concatenate([low, low + rng.uniform(3, 8, (n, 2))], 1).astype(np.float32)
    phrases = ("a brown dog", "a white dog") * n
    return Layout(side, side, boxes, ("dog",) * n, phrases[:n])


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def text_to_image_options(steps: int, guidance_scale: float) -> dict[str, Any]:
    """Return the arguments of diffusers' pipelines for one image of the size SIDE."""
    return {
        "height": SIDE,
        "width": SIDE,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "output_type": "latent",
    }


@pytest.fixture(scope="module")
def sdxl(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SDXL checkpoint."""
    return make_sdxl(checkpoint, tmp_path_factory.mktemp("sdxl"))


def make_sdxl(checkpoint: Path, folder: Path) -> Path:
    """Save a tiny random SDXL checkpoint to a folder, with parts of another checkpoint."""
    torch.manual_seed(0)
    base = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    tokenizer = base.tokenizer
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=20,
        max_position_embeddings=32,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16 + 24,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=20 + 6 * 4,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=base.scheduler,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def denoise_one_region(
    pipeline: LatentPipeline,
    prompt: str,
    noise: Tensor,
    guidance: float,
    steps: int,
    negative: str | None = None,
) -> Tensor:
    """Return the latents of an image that is generated as one region."""
    words = pipeline.text_conditions([prompt, negative], guidance)
    regions = pipeline.cover(0, (SIDE, SIDE), (0, 1), guidance)
    mixture = Mixture(regions, words, noise.shape, 10**6)
    return pipeline.denoise(noise, [mixture] * steps, generator=generators(7))


@pytest.mark.parametrize("prompt", ["a brown dog", ""])
@pytest.mark.parametrize("negative", [None, "", "sand"])
@torch.no_grad()
def test_latents_of_sdxl_are_those_of_diffusers(
    sdxl: Path, prompt: str, negative: str | None
) -> None:
    ours = MixturePipeline.from_pretrained(sdxl, use_safetensors=True)
    theirs = StableDiffusionXLPipeline.from_pretrained(sdxl, add_watermarker=False)
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
    noise = ours.noise([layout(0)], generators(3))
    options = text_to_image_options(3, 3.0)
    wanted = theirs(prompt, latents=noise, negative_prompt=negative, **options).images
    got = denoise_one_region(ours, prompt, noise, 3.0, 3, negative)
    assert (got - wanted).norm() / wanted.norm() < 1e-5
    without = denoise_one_region(ours, prompt, noise, 3.0, 3, None)
    assert bool(torch.equal(got, without)) == (negative is None)


def test_an_empty_prompt_of_a_job_is_none_and_a_space_is_an_empty_prompt(sdxl: Path) -> None:
    """An omitted prompt of a scene stays no prompt, so that the images of jobs do not change."""
    pipeline = MixturePipeline.from_pretrained(sdxl, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    spec = MixtureSpec(model=str(sdxl), steps=2, scheduler=None)
    boxes = layout(2, 32)
    seed = np.random.SeedSequence(0)
    images: dict[str, Any] = {}
    for negative in ("", " ", "sand"):
        painter = spec.load(SceneSpec(), Numerics())
        (painting,) = painter([Scene(boxes, "grass", negative)], [seed])
        images[negative] = painting.image

    def generate(negative: str | None) -> Any:
        number = int(seed.generate_state(1, np.uint64)[0] >> 1)
        options = {
            "background": "grass",
            "num_inference_steps": 2,
            "output_type": "np",
            "generator": generators(number),
        }
        return pipeline([boxes], negative_prompt=negative, **options)[0]

    for negative, prompt in (("", None), (" ", ""), ("sand", "sand")):
        assert np.abs(images[negative].astype(int) - generate(prompt)).max() <= 1
    assert np.abs(images[""].astype(int) - images[" "]).max() > 3


@pytest.mark.parametrize("kind", [MixturePipeline, RegionalAttentionPipeline])
def test_an_image_of_sdxl_does_not_depend_on_its_batch(sdxl: Path, kind: Any) -> None:
    pipeline = kind.from_pretrained(sdxl, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    batch = [layout(n, 40) for n in (3, 0, 100, 1)]
    options = {"background": "sand", "num_inference_steps": 2, "output_type": "latent"}
    together = pipeline(batch, generator=generators(0, 1, 2, 3), **options)
    for i in range(4):
        alone = pipeline([batch[i]], generator=generators(i), **options)
        assert (together[i] - alone[0]).norm() / alone.norm() < 1e-4


def test_a_method_that_does_not_read_sdxl_refuses_it(sdxl: Path) -> None:
    pipeline = AnnotationTokensPipeline.from_pretrained(sdxl, use_safetensors=True)
    with pytest.raises(
        IncompatibleLayoutError,
        match="text_encoder_2: this method reads checkpoints with one text encoder",
    ):
        pipeline([layout(1)])


@torch.no_grad()
def test_a_distilled_unet_reads_the_guidance_scale_and_has_one_branch(checkpoint: Path) -> None:
    ours = MixturePipeline.from_pretrained(checkpoint, use_safetensors=True)
    torch.manual_seed(0)
    ours.unet = UNet2DConditionModel.from_config({**ours.unet.config, "time_cond_proj_dim": 16})
    ours.scheduler = LCMScheduler()
    theirs = LatentConsistencyModelPipeline(
        vae=ours.vae,
        text_encoder=ours.text_encoder,
        tokenizer=ours.tokenizer,
        unet=ours.unet,
        scheduler=LCMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
    noise = ours.noise([layout(0)], generators(3))
    options = text_to_image_options(4, 8.0)
    wanted = theirs("a brown dog", latents=noise, generator=generators(7), **options)
    rows: list[int] = []
    ours.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    got = denoise_one_region(ours, "a brown dog", noise, 8.0, 4)
    assert (got - wanted.images).norm() / wanted.images.norm() < 1e-5
    assert rows == [1] * 4


@pytest.fixture(scope="module")
def lora(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the tiny checkpoint's UNet, as diffusers' training scripts save it."""
    unet = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet")
    unet.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian")
    )
    for name, weight in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("lora")
    StableDiffusionPipeline.save_lora_weights(
        folder, convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    )
    return folder


def test_a_lora_is_merged_into_the_weights(checkpoint: Path, lora: Path) -> None:
    base = MixturePipeline.from_pretrained(checkpoint, use_safetensors=True)
    merged = MixturePipeline.from_pretrained(checkpoint, use_safetensors=True)
    merged.merge_lora(find_lora(str(lora)), 0.5)
    state = load_file(find_lora(str(lora)))
    changed = 0
    for name, weight in base.unet.state_dict().items():
        module = f"unet.{name.removesuffix('.weight')}"
        down = state.get(f"{module}.lora_A.weight", state.get(f"{module}.lora.down.weight"))
        up = state.get(f"{module}.lora_B.weight", state.get(f"{module}.lora.up.weight"))
        wanted = weight.double()
        if up is not None and down is not None:
            wanted = wanted + 0.5 * up.double() @ down.double()
        got = merged.unet.state_dict()[name].double()
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
        changed += up is not None
    assert changed >= 4


def test_a_recipe_names_a_lora(checkpoint: Path, lora: Path, tmp_path: Path) -> None:
    scene = Scene(layout(2), "sand")
    plain = MixtureSpec(model=str(checkpoint), steps=2)
    with_lora = MixtureSpec(model=str(checkpoint), steps=2, lora=str(lora))
    images = []
    for spec in (plain, with_lora):
        painter = spec.load(SceneSpec(), Numerics())
        images.append(painter([scene], [np.random.SeedSequence(0)])[0].image)
    assert not np.array_equal(images[0], images[1])
    assert "lora_sha256" in with_lora.fingerprint()
    with pytest.raises(
        ConfigError, match=r"pipeline.lora: LoRA 'nowhere.safetensors': no such .safetensors file"
    ):
        load_job("100dogs", ["pipeline.lora=nowhere.safetensors"])
    with pytest.raises(ModelNotFoundError, match=r"0 .safetensors files"):
        find_lora(str(tmp_path))


@pytest.mark.parametrize("scheduler", ["lcm", "unipc"])
def test_few_step_schedulers_are_deterministic(checkpoint: Path, scheduler: str) -> None:
    spec = MixtureSpec.model_validate(
        {"model": str(checkpoint), "steps": 4, "scheduler": scheduler, "guidance_scale": 1.0}
    )
    painter = spec.load(SceneSpec(), Numerics())
    scenes = [Scene(layout(2), "sand")]
    first = painter(scenes, [np.random.SeedSequence(0)])[0].image
    second = painter(scenes, [np.random.SeedSequence(0)])[0].image
    np.testing.assert_array_equal(first, second)


def test_embeddings_are_cached_from_batch_to_batch(checkpoint: Path) -> None:
    spec = MixtureSpec(model=str(checkpoint), steps=1)
    fresh = LatentPipeline.from_pretrained(checkpoint, use_safetensors=True)
    pipeline = load_pipeline(MixturePipeline, spec, None, Numerics())
    encoded: list[int] = []
    pipeline.text_encoder.register_forward_pre_hook(
        lambda module, inputs: encoded.append(len(inputs[0]))
    )
    with torch.no_grad():
        for prompts in (["sand", "a dog", "sand"], ["a dog", "sand"], ["a dog", "a cat"]):
            got = pipeline.text_conditions(prompts, 2.0)["encoder_hidden_states"]
            wanted = fresh.text_conditions(prompts, 2.0)["encoder_hidden_states"]
            torch.testing.assert_close(got, wanted)
        assert encoded == [2, 2]
        for k in range(2 * CACHED_SETS):
            pipeline.text_conditions([f"dog {k}"], 2.0)
    assert pipeline.embedded is not None
    assert len(pipeline.embedded) == CACHED_SETS


def test_a_compiled_unet_generates_the_same_images(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs are traced but not compiled to code, which would take minutes."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = partial(torch.nn.Module.compile, backend=backend)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled(self))
    graph_counts = []
    images = []
    for compile_it in (False, True):
        spec = MixtureSpec(model=str(checkpoint), steps=2, compile=compile_it)
        painter = spec.load(SceneSpec(background="sand"), Numerics(batch_size=2, chunk=2))
        for batch in range(3):
            scenes = [Scene(layout(n, 32), "sand") for n in (5, 6 + batch)]
            seeds = [np.random.SeedSequence(k) for k in range(2)]
            images += [painting.image for painting in painter(scenes, seeds)]
        graph_counts.append(len(graphs))
    for plain, other in zip(images[:6], images[6:], strict=True):
        assert np.abs(plain.astype(int) - other).max() <= 1
    assert graph_counts[0] == 0
    assert 1 <= graph_counts[1] <= 6


@torch.no_grad()
def test_a_compiled_unet_has_one_shape_if_the_windows_have_one_size(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CompileCounterWithBackend("eager")
    compiled = partial(torch.nn.Module.compile, backend=counter)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled(self))
    torch._dynamo.reset()
    spec = MixtureSpec(
        model=str(checkpoint), steps=3, compile=True, window=16, guidance_interval=(0.0, 0.5)
    )
    painter = spec.load(SceneSpec(background="sand"), Numerics(chunk=3))
    shapes: list[tuple[int, ...]] = []
    painter.pipeline.unet.register_forward_pre_hook(  # type: ignore[attr-defined]
        lambda module, given: shapes.append(tuple(given[0].shape))
    )
    frames = []
    for count in (1, 3, 2, 5):
        painter([Scene(layout(count, 48), "sand")], [np.random.SeedSequence(count)])
        frames.append(counter.frame_count)
    assert len(set(shapes)) == 1
    assert frames[0] > 0
    assert frames == [frames[0]] * 4
    torch._dynamo.reset()
