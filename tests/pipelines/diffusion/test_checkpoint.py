"""Checkpoints of every kind are used, or refused in one line before anything is written."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from synthgen import cli
from synthgen.config import ConfigError, load_job
from synthgen.layouts.base import Layout
from synthgen.pipelines.base import ModelNotFoundError, Numerics
from synthgen.pipelines.diffusion.mixture import Mixture
from synthgen.pipelines.diffusion.pipeline import load_pipeline
from synthgen.pipelines.diffusion.single_file import UNET_INPUT, VAE_INPUT
from synthgen.pipelines.diffusion.sources import EMBEDDED, hash_folder
from synthgen.pipelines.mixture import Spec as MixtureSpec
from synthgen.pipelines.mixture.pipeline import MixturePipeline

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
WEIGHTS = (UNET, VAE, TEXT)
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
SMALL = ["layout.canvas=[32,32]", "layout.objects={dog: 1}", "layout.size=[16,20]", "images=1"]

Break = Callable[[Path], Any]


def edit(file: str, **changes: Any) -> Break:
    """Return a function that changes values in a JSON file of a checkpoint."""

    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def drop(file: str) -> Break:
    """Return a function that deletes a file or folder of a checkpoint."""

    def change(folder: Path) -> None:
        path = folder / file
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    return change


def write(file: str, text: str) -> Break:
    """Return a function that writes a file of a checkpoint."""
    return lambda folder: (folder / file).write_text(text)


def cut(folder: Path) -> None:
    """Truncate the UNet's weights."""
    data = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(data[: len(data) // 2])


def cut_in_header(folder: Path) -> None:
    """Truncate the UNet's weights within their header."""
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:100])


def lengthen(folder: Path) -> None:
    """Append bytes to the UNet's weights."""
    (folder / UNET).write_bytes((folder / UNET).read_bytes() + b"more")


def to_variant(variant: str, *files: str) -> Break:
    """Return a function that replaces files of weights by a variant in float16."""

    def change(folder: Path) -> None:
        for file in files:
            state = {name: tensor.half() for name, tensor in load_file(folder / file).items()}
            target = file.replace(".safetensors", f".{variant}.safetensors")
            save_file(state, folder / target, {"format": "pt"})
            (folder / file).unlink()

    return change


def shard(folder: Path) -> None:
    """Split the UNet's weights into two shards."""
    entries = list(load_file(folder / UNET).items())
    weight_map = {}
    for k in (0, 1):
        name = f"diffusion_pytorch_model-0000{k + 1}-of-00002.safetensors"
        half = dict(entries[k::2])
        save_file(half, folder / "unet" / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(half, name))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{UNET}.index.json").write_text(json.dumps(index))
    (folder / UNET).unlink()


def shard_and_lose_one(folder: Path) -> None:
    """Split the UNet's weights into two shards, and delete the second."""
    shard(folder)
    (folder / "unet/diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def pickle(folder: Path) -> None:
    """Rename the UNet's weights to a pickled file."""
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.bin")


def widen(channels: int, kind: str) -> Break:
    """Return a function that makes the UNet read `channels`, in a pipeline of the class `kind`."""

    def change(folder: Path) -> None:
        state = load_file(folder / UNET)
        old = state["conv_in.weight"]
        zeros = torch.zeros(len(old), channels - old.shape[1], 3, 3)
        state["conv_in.weight"] = torch.cat([old, zeros], 1)
        save_file(state, folder / UNET, {"format": "pt"})
        edit("unet/config.json", in_channels=channels)(folder)
        edit("model_index.json", _class_name=kind)(folder)

    return change


def lose_tensor(folder: Path) -> None:
    """Delete a tensor of the UNet that its config.json requires."""
    state = load_file(folder / UNET)
    del state["up_blocks.1.resnets.0.conv2.weight"]
    save_file(state, folder / UNET, {"format": "pt"})


def to_transformer(kind: str, network: str) -> Break:
    """Return a function that replaces the UNet by a transformer."""

    def change(folder: Path) -> None:
        shutil.rmtree(folder / "unet")
        index = json.loads((folder / "model_index.json").read_text())
        del index["unet"]
        index |= {"_class_name": kind, "transformer": ["diffusers", network]}
        (folder / "model_index.json").write_text(json.dumps(index))

    return change


def to_refiner(folder: Path) -> None:
    """Change the model_index.json to that of SDXL's refiner."""
    change = edit(
        "model_index.json",
        _class_name="StableDiffusionXLImg2ImgPipeline",
        text_encoder=[None, None],
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
    )
    change(folder)


def to_scheduler(name: str, **settings: Any) -> Break:
    """Return a function that changes the scheduler."""

    def change(folder: Path) -> None:
        edit("model_index.json", scheduler=["diffusers", name])(folder)
        edit("scheduler/scheduler_config.json", _class_name=name, **settings)(folder)

    return change


def keep(folder: Path) -> None:
    """Leave the checkpoint unchanged."""


REFUSED: list[tuple[str, Break, list[str], str, str]] = [
    ("cut", cut, [], "model", "unet/diffusion_pytorch_model.safetensors is cut short"),
    (
        "cut in its header",
        cut_in_header,
        [],
        "model",
        "unet/diffusion_pytorch_model.safetensors is cut short (100 bytes)",
    ),
    ("too long", lengthen, [], "model", "has 4 bytes too many"),
    (
        "no safetensors file",
        write(UNET, "<!DOCTYPE html> and so on"),
        [],
        "model",
        "is no safetensors file",
    ),
    ("empty file", write(UNET, ""), [], "model", "is cut short (0 bytes)"),
    ("pointer of Git LFS", write(VAE, POINTER), [], "model", "git lfs pull"),
    (
        "missing shard",
        shard_and_lose_one,
        [],
        "model",
        "no unet/diffusion_pytorch_model-00002-of-00002.safetensors, a shard",
    ),
    ("pickled", pickle, [], "model", "pickled weights are not loaded"),
    ("no weights", drop(VAE), [], "model", "has no safetensors weights for vae; download"),
    ("no scheduler", drop("scheduler"), [], "model", "there is no scheduler/scheduler_config.json"),
    ("no vae config", drop("vae/config.json"), [], "model", "there is no vae/config.json"),
    ("no tokenizer", drop("tokenizer"), [], "model", "there is no tokenizer/tokenizer.json"),
    (
        "broken config",
        write("unet/config.json", "{"),
        [],
        "model",
        "unet/config.json cannot be read as JSON",
    ),
    (
        "broken index",
        write("model_index.json", "[]"),
        [],
        "model",
        "model_index.json holds no mapping",
    ),
    (
        "bf16 alone",
        to_variant("bf16", *WEIGHTS),
        [],
        "weights",
        "has only bf16 weights; give bf16",
    ),
    (
        "no fp16",
        keep,
        ["pipeline.weights=fp16"],
        "weights",
        "has no fp16 weights; leave the key out",
    ),
    (
        "another variant",
        to_variant("ema", UNET),
        ["pipeline.weights=fp16"],
        "weights",
        "has no fp16 weights; it has ema",
    ),
    (
        "inpainting",
        widen(7, "StableDiffusionInpaintPipeline"),
        [],
        "model",
        "unet.in_channels is 7, but its vae has 3 latent channels",
    ),
    (
        "pix2pix",
        widen(6, "StableDiffusionInstructPix2PixPipeline"),
        [],
        "model",
        "unet.in_channels is 6",
    ),
    (
        "pix2pix as a mask",
        widen(6, "StableDiffusionInstructPix2PixPipeline"),
        ["pipeline.method=annotation_mask"],
        "model",
        "unet.in_channels is 6",
    ),
    (
        "upscaler",
        edit("unet/config.json", num_class_embeds=1000),
        [],
        "model",
        "num_class_embeds: 1000",
    ),
    (
        "text-image GLIGEN",
        edit("unet/config.json", attention_type="gated-text-image"),
        [],
        "model",
        "GLIGEN text-image",
    ),
    (
        "refiner",
        to_refiner,
        [],
        "model",
        "StableDiffusionXLImg2ImgPipeline without a text_encoder: a refiner",
    ),
    (
        "SD3",
        to_transformer("StableDiffusion3Pipeline", "SD3Transformer2DModel"),
        [],
        "model",
        "StableDiffusion3Pipeline, whose network is a SD3T",
    ),
    (
        "FLUX",
        to_transformer("FluxPipeline", "FluxTransformer2DModel"),
        [],
        "model",
        "FluxPipeline, whose network is a FluxTransformer2DModel",
    ),
    (
        "own class",
        edit("model_index.json", unet=["diffusers_modules", "MyUNet"]),
        [],
        "model",
        "its unet is a MyUNet of diffusers_modules",
    ),
    (
        "T5",
        edit("model_index.json", text_encoder=["transformers", "T5EncoderModel"]),
        [],
        "model",
        "its text_encoder is a T5EncoderModel",
    ),
    (
        "quantised",
        edit("unet/config.json", quantization_config={"bits": 4}),
        [],
        "model",
        "its unet is quantised",
    ),
    (
        "another config",
        edit("unet/config.json", block_out_channels=[8, 32]),
        [],
        "model",
        "of another checkpoint",
    ),
    (
        "another text encoder",
        edit("unet/config.json", cross_attention_dim=1024),
        [],
        "model",
        "cross_attention_dim is 1024, but its text",
    ),
    (
        "another vae",
        edit("unet/config.json", out_channels=6),
        [],
        "model",
        "unet.out_channels is 6, but its vae has 3",
    ),
    (
        "missing tensor",
        lose_tensor,
        [],
        "model",
        "its unet has no tensor up_blocks.1.resnets.0.conv2.weight",
    ),
    (
        "config without a key",
        write("vae/config.json", '{"latent_channels": 3}'),
        [],
        "model",
        "lacks or misstates 'block_out_channels'",
    ),
    (
        "flow matching",
        to_scheduler("FlowMatchEulerDiscreteScheduler"),
        [],
        "model",
        "its scheduler is a FlowMatchEulerDiscreteScheduler",
    ),
    (
        "EDM",
        to_scheduler("EDMEulerScheduler"),
        [],
        "scheduler",
        "dpm++ cannot replace the EDMEulerScheduler",
    ),
    (
        "PNDM from within",
        to_scheduler("PNDMScheduler", skip_prk_steps=True),
        ["pipeline.method=layered", "pipeline.scheduler=null"],
        "scheduler",
        "PNDMScheduler of",
    ),
    (
        "steps of lcm",
        keep,
        ["pipeline.scheduler=lcm", "pipeline.steps=60"],
        "steps",
        "60 are more than the 50 of the scheduler lcm",
    ),
    ("lora_scale", keep, ["pipeline.lora_scale=true"], "lora_scale", "true is no number"),
]


@pytest.mark.parametrize(
    ("change", "options", "key", "phrase"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_an_unusable_checkpoint_is_refused_before_anything_is_written(
    change: Break,
    options: list[str],
    key: str,
    phrase: str,
    checkpoint: Path,
    job_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    change(folder)
    start = time.process_time()
    status = cli.main(
        ["run", str(job_file), "pipeline.method=mixture", f"pipeline.model={folder}", *options]
    )
    error = capsys.readouterr().err
    assert status == 2, error
    assert error.count("\n") == 1, error
    assert f"pipeline.{key}: " in error
    assert phrase in error
    assert not (tmp_path / "out").exists()
    assert time.process_time() - start < 1  # only headers are read


def single_file(*names: str) -> Callable[[Path], Path]:
    """Return a function that writes a file with tensors of these names to a folder."""

    def make(folder: Path) -> Path:
        save_file({name: torch.zeros(4, 4, 3, 3) for name in names}, folder / "v10.safetensors")
        return folder / "v10.safetensors"

    return make


@pytest.mark.parametrize(
    ("make", "phrase"),
    [
        (single_file(UNET_INPUT), "is a Stable Diffusion checkpoint without its autoencoder"),
        (single_file(UNET_INPUT, VAE_INPUT), "Diffusion checkpoint without its text encoder"),
        (
            single_file(UNET_INPUT, VAE_INPUT, "conditioner.embedders.0.model.x"),
            "is the refiner of Stable Diffusion XL",
        ),
        (single_file("lora_unet_x.lora_up.weight"), "is a LoRA; give it as `pipeline.lora`"),
        (single_file("double_blocks.0.x"), "without the names of a Stable Diffusion checkpoint"),
    ],
)
def test_a_single_file_is_refused_without_a_request_to_the_hub(
    make: Callable[[Path], Path],
    phrase: str,
    job_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "models").mkdir()
    name = make(tmp_path / "models").relative_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    pipeline = ["pipeline.method=mixture", f"pipeline.model={name}"]
    assert cli.main(["run", str(job_file), *pipeline]) == 2
    error = capsys.readouterr().err
    assert f"pipeline.model: model '{name}': " in error
    assert phrase in error


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (to_variant("fp16", *WEIGHTS), []),
        (to_variant("fp16", UNET), []),
        (to_variant("fp16", UNET), ["pipeline.weights=fp16"]),
        (shard, []),
        (to_scheduler("PNDMScheduler", skip_prk_steps=True), ["pipeline.scheduler=null"]),
        (to_scheduler("HeunDiscreteScheduler"), ["pipeline.scheduler=null"]),
        (widen(6, "StableDiffusionPipeline"), ["pipeline.method=annotation_mask"]),
    ],
    ids=[
        "fp16 alone",
        "fp16 of the unet alone",
        "weights=fp16",
        "sharded",
        "PNDM",
        "Heun",
        "own mask",
    ],
)
def test_a_usable_checkpoint_runs(
    change: Break,
    options: list[str],
    checkpoint: Path,
    job_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    change(folder)
    pipeline = ["pipeline.method=mixture", f"pipeline.model={folder}", "pipeline.steps=2", *options]
    assert cli.main(["run", str(job_file), *SMALL, *pipeline]) == 0, capsys.readouterr().err
    assert (tmp_path / "out/shards/000000.tar").is_file()


def test_each_part_is_loaded_from_the_chosen_weights(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    plain = load_file(folder / VAE)
    to_variant("fp16", UNET, VAE)(folder)
    save_file(plain, folder / VAE, {"format": "pt"})  # the autoencoder has both
    name = "decoder.conv_in.weight"
    unet = load_file(checkpoint / UNET)["conv_in.weight"].half().float()
    for weights, vae in ((None, plain[name]), ("fp16", plain[name].half().float())):
        spec = MixtureSpec(model=str(folder), weights=weights)
        pipeline = load_pipeline(MixturePipeline, spec, None, Numerics())
        assert torch.equal(pipeline.vae.state_dict()[name], vae)
        assert torch.equal(pipeline.unet.conv_in.weight, unet)


def test_a_missing_weight_that_the_header_check_ignores_is_refused_when_loaded(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    state = load_file(folder / UNET)
    del state["mid_block.resnets.1.norm2.bias"]
    save_file(state, folder / UNET, {"format": "pt"})
    with pytest.raises(
        ModelNotFoundError,
        match=r"its unet lacks 1 weights, such as mid_block.resnets.1.norm2.bias",
    ):
        load_pipeline(MixturePipeline, MixtureSpec(model=str(folder)), None, Numerics())


def test_the_hash_of_the_embedded_checkpoint_does_not_change() -> None:
    """Unfinished datasets that use it can be resumed."""
    assert hash_folder(EMBEDDED / "synthgen-tiny") == HASH


HASH = "b58b08dc50d330e61d875686ec7b2baf06dd42534a00c5486ed259c5a7fff9e4"


@pytest.mark.parametrize("method", ["annotation_tokens", "grounded"])
def test_methods_that_read_one_text_encoder_refuse_sdxl(
    method: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tiny_sdxl(checkpoint, tmp_path / "sdxl")
    with pytest.raises(ConfigError, match=r"pipeline.model: .* has two text encoders \(SDXL\)"):
        load_job("100dogs", [f"pipeline={{method: {method}, model: {folder}}}"])
    load_job("100dogs", [f"pipeline={{method: mixture, model: {folder}}}"])


def tiny_sdxl(checkpoint: Path, folder: Path) -> Path:
    """Save a random SDXL checkpoint with two layers in each of three blocks, as SDXL has them."""
    torch.manual_seed(0)
    base = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    text = CLIPTextConfig(
        vocab_size=len(base.tokenizer),
        hidden_size=24,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=20,
        max_position_embeddings=32,
        eos_token_id=base.tokenizer.eos_token_id,
        bos_token_id=base.tokenizer.bos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8, 16),
        layers_per_block=2,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 2, 4),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=16 + 24,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=20 + 6 * 4,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=base.tokenizer,
        tokenizer_2=base.tokenizer,
        unet=unet,
        scheduler=base.scheduler,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


# Schedulers with several evaluations in some steps.
SEVERAL_EVALUATIONS = [
    PNDMScheduler(skip_prk_steps=True, steps_offset=1),
    PNDMScheduler(steps_offset=1),
    HeunDiscreteScheduler(steps_offset=1),
]


@torch.no_grad()
@pytest.mark.parametrize("scheduler", SEVERAL_EVALUATIONS)
def test_latents_of_steps_with_several_evaluations_are_those_of_diffusers(
    scheduler: Any, checkpoint: Path
) -> None:
    ours = MixturePipeline.from_pretrained(checkpoint, use_safetensors=True, scheduler=scheduler)
    theirs = StableDiffusionPipeline.from_pretrained(
        checkpoint, safety_checker=None, scheduler=type(scheduler).from_config(scheduler.config)
    )
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
    layout = Layout(16, 16, np.zeros((0, 4), np.float32), ())
    noise = ours.noise([layout], torch.Generator().manual_seed(3))
    options = {
        "height": 16,
        "width": 16,
        "num_inference_steps": 5,
        "guidance_scale": 3.0,
        "output_type": "latent",
    }
    wanted = theirs("a brown dog", latents=noise, **options).images
    words = ours.text_conditions(["a brown dog", ""], 3.0)
    regions = ours.cover(0, (16, 16), (0, 1), 3.0)
    recorded: list[int] = []
    steps = [Mixture(regions, words, noise.shape, 10**6)] * 5

    def record(z: torch.Tensor, scheduler: Any, step: int, t: torch.Tensor | None) -> torch.Tensor:
        recorded.append(step)
        return z

    got = ours.denoise(noise, steps, after=[record])
    assert (got - wanted).norm() / wanted.norm() < 1e-5
    assert recorded == sorted(recorded)
    assert set(recorded) == set(range(5))


@torch.no_grad()
def test_an_autoencoder_with_statistics_of_its_latents_uses_them(checkpoint: Path) -> None:
    mean = [0.5, -1.0, 2.0]
    std = [2.0, 0.5, 1.5]
    plain = MixturePipeline.from_pretrained(checkpoint, use_safetensors=True)
    other = MixturePipeline.from_pretrained(checkpoint, use_safetensors=True)
    config = {**plain.vae.config, "latents_mean": mean, "latents_std": std}
    other.vae = AutoencoderKL.from_config(config)
    other.vae.load_state_dict(plain.vae.state_dict())
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    factor = plain.vae.config.scaling_factor
    shift = torch.tensor(mean)[None, :, None, None]
    spread = torch.tensor(std)[None, :, None, None]
    raw = plain.encode_images(images) / factor
    normal = other.encode_images(images)
    torch.testing.assert_close(normal, (raw - shift) / spread * factor)
    scaled = normal / factor * spread + shift
    wanted = plain.decode(scaled * factor)
    np.testing.assert_allclose(other.decode(normal).astype(int), wanted.astype(int), atol=1)
    assert not np.array_equal(other.decode(normal), plain.decode(normal))
