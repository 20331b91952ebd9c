#!/usr/bin/env python3
"""Count the work of methods with the public checkpoints, without their weights.

usage: benchmarks/counts.py [--counts 10 30 100] [--results FILE]

The checkpoints are written to a temporary folder in the form of the public ones: with their
configurations, and files of weights that have headers and no data. A row is a method, a checkpoint
and a number of dogs of 56-88 px on a canvas of 1024 x 1024 px (layouts/100dogs.yaml). Its recipe
has the steps and the guidance scale of the checkpoint below, and defaults otherwise.
columns: see `synthgen.engine.estimate.CountedPlan`
  passes          windows per image that the UNet processes
  TFLOP           of the UNet and the autoencoder per image
  GB              size of the weights in float16
  A100, H100      seconds per image; estimates, not measurements
"""

import argparse
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from synthgen.config import load_job
from synthgen.engine.estimate import count
from synthgen.pipelines.diffusion.sources import EMBEDDED

RESULTS = Path(__file__).parent / "results" / "counts.json"
METHODS = ("mixture", "regional_attention", "inpaint")
CARDS = ("A100", "H100")
# Keys of the recipe for each checkpoint.
RECIPES = {
    "SD 1.5": "steps: 20, guidance_scale: 7.5",
    "SDXL": "steps: 20, guidance_scale: 6.0",
    "SDXL-Turbo": "steps: 4, guidance_scale: 1.0, scheduler: null",
}
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
TOKENS = 77  # that the text encoders read


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = []
    with TemporaryDirectory() as scratch:
        for name, recipe in RECIPES.items():
            folder = Path(scratch) / name
            CHECKPOINTS[name](folder)
            for method in METHODS:
                for dogs in args.counts:
                    rows.append(count_row(name, method, dogs, f"model: {folder}, {recipe}"))
                    print(json.dumps(rows[-1]), flush=True)
    args.results.write_text(json.dumps(rows, indent=1) + "\n")


def count_row(checkpoint: str, method: str, dogs: int, recipe: str) -> dict[str, Any]:
    """Return the row of a method, a checkpoint and a number of dogs.

    Args:
        recipe: keys of the recipe without the method, in YAML.
    """
    objects = f"layout.objects={{dog: {dogs}}}"
    job = load_job("100dogs", [f"pipeline={{method: {method}, {recipe}}}", objects])
    plan = count(job)
    row: dict[str, Any] = {"checkpoint": checkpoint, "method": method, "dogs": dogs}
    row["passes"] = plan.passes_per_image
    row["TFLOP"] = round(plan.unet_tflop_per_image + plan.vae_tflop_per_image, 2)
    row["GB"] = round(plan.weight_gigabytes, 2)
    for each in plan.cards:
        if each.card in CARDS:
            row[each.card] = round(each.seconds_per_image, 2)
    return row


def write_sd15(folder: Path) -> None:
    """Write a checkpoint in the form of Stable Diffusion 1.5, without data."""
    with torch.device("meta"):
        networks = {
            "unet": UNet2DConditionModel(cross_attention_dim=768, sample_size=64),
            "vae": make_vae(512),
            "text_encoder": CLIPTextModel(make_text_config()),
        }
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    )
    write_checkpoint(folder, "StableDiffusionPipeline", networks, scheduler)


def write_sdxl(folder: Path) -> None:
    """Write a checkpoint in the form of SDXL, without data."""
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    write_sdxl_form(folder, 128, scheduler)


def write_turbo(folder: Path) -> None:
    """Write a checkpoint in the form of SDXL-Turbo, without data."""
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        steps_offset=1,
    )
    write_sdxl_form(folder, 64, scheduler)


CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    "SD 1.5": write_sd15,
    "SDXL": write_sdxl,
    "SDXL-Turbo": write_turbo,
}


def write_sdxl_form(folder: Path, sample_size: int, scheduler: Any) -> None:
    """Write a checkpoint with the networks of SDXL, without data.

    Args:
        sample_size: side of the windows that it was trained at, in latent cells.
    """
    networks = make_sdxl_networks(sample_size)
    write_checkpoint(folder, "StableDiffusionXLPipeline", networks, scheduler)


def make_sdxl_networks(sample_size: int = 128) -> dict[str, Any]:
    """Return the networks of SDXL by the names of their folders, on the meta device.

    Args:
        sample_size: side of the windows that they were trained at, in latent cells.
    """
    second = make_text_config(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
    )
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=sample_size,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            use_linear_projection=True,
        )
        return {
            "unet": unet,
            "vae": make_vae(1024),
            "text_encoder": CLIPTextModel(make_text_config()),
            "text_encoder_2": CLIPTextModelWithProjection(second),
        }


def make_vae(sample_size: int) -> AutoencoderKL:
    """Return an autoencoder of the form that both families have."""
    return AutoencoderKL(
        sample_size=sample_size,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )


def make_text_config(**keys: int) -> CLIPTextConfig:
    """Return the configuration of the text encoder of CLIP ViT-L, or of another one."""
    form = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "max_position_embeddings": TOKENS,
    }
    return CLIPTextConfig(**{**form, **keys})


def write_checkpoint(folder: Path, kind: str, networks: dict[str, Any], scheduler: Any) -> None:
    """Write a checkpoint in diffusers' format, whose files of weights have no data.

    Args:
        kind: class of the checkpoint.
        networks: its networks by the names of their folders, on the meta device.
    """
    index: dict[str, Any] = {"_class_name": kind, "force_zeros_for_empty_prompt": True}
    for part, network in networks.items():
        library = "transformers" if part.startswith("text_encoder") else "diffusers"
        index[part] = [library, type(network).__name__]
        (folder / part).mkdir(parents=True)
        if library == "transformers":
            network.config.save_pretrained(folder / part)
        else:
            network.save_config(folder / part)
        write_empty_weights(folder / part / f"{STEMS.get(part, 'model')}.safetensors", network)
    tokenizers = ["tokenizer", "tokenizer_2"][: len(networks) - 2]
    for name in tokenizers:
        index[name] = ["transformers", "CLIPTokenizer"]
        write_tokenizer(folder / name)
    scheduler.save_config(folder / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))


def write_empty_weights(file: Path, network: torch.nn.Module) -> None:
    """Write a safetensors file with a header for float16, and a hole in place of the data."""
    header = {}
    stop = 0
    for name, weight in network.state_dict().items():
        start = stop
        stop = start + 2 * weight.numel()
        shape = list(weight.shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, stop]}
    encoded = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        stream.truncate(8 + len(encoded) + stop)


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer of the embedded checkpoint with the length of CLIP's."""
    shutil.copytree(EMBEDDED / "synthgen-tiny" / "tokenizer", folder)
    path = folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "model_max_length": TOKENS}
    path.write_text(json.dumps(config))


if __name__ == "__main__":
    main()
