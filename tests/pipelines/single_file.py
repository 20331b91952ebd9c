"""Write a checkpoint to one file with the names of the original Stable Diffusion code."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def write_single_file(folder: Path, file: Path, open_clip: bool = False) -> None:
    """Write a checkpoint in diffusers' format to one file.

    Args:
        open_clip: whether the only text encoder has the names of OpenCLIP, as in Stable
            Diffusion 2.
    """
    state: State = {}
    for name, tensor in name_unet(folder).items():
        state[f"model.diffusion_model.{name}"] = tensor
    for name, tensor in name_vae(folder).items():
        state[f"first_stage_model.{name}"] = tensor
    text = read_part(folder, "text_encoder")
    if (folder / "text_encoder_2").is_dir():
        for name, tensor in text.items():
            state[f"conditioner.embedders.0.transformer.text_model.{name}"] = tensor
        for name, tensor in name_open_clip(read_part(folder, "text_encoder_2")).items():
            state[f"conditioner.embedders.1.model.{name}"] = tensor
    elif open_clip:
        for name, tensor in name_open_clip(text).items():
            state[f"cond_stage_model.model.{name}"] = tensor
    else:
        for name, tensor in text.items():
            state[f"cond_stage_model.transformer.text_model.{name}"] = tensor
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)


def read_part(folder: Path, part: str) -> State:
    """Return the weights of a part, by their names without "text_model."."""
    (file,) = (folder / part).glob("*.safetensors")
    return {name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """Return the configuration of a part."""
    config: dict[str, Any] = json.loads((folder / part / "config.json").read_text())
    return config


def replace_start(name: str, names: dict[str, str]) -> str:
    """Return a name whose beginning is replaced."""
    for old, new in names.items():
        if name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def replace_inside(name: str, names: dict[str, str]) -> str:
    """Return a name in which one part is replaced."""
    for old, new in names.items():
        if f".{old}." in name:
            return name.replace(f".{old}.", f".{new}.")
    return name


def name_unet(folder: Path) -> State:
    """Return the weights of a UNet under their original names."""
    config = read_config(folder, "unet")
    layers = config["layers_per_block"]
    blocks = len(config["block_out_channels"])
    places = dict(UNET)
    number = 1
    for block in range(blocks):
        for layer in range(layers):
            places[f"down_blocks.{block}.resnets.{layer}"] = f"input_blocks.{number}.0"
            places[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        places[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    number = 0
    for block in range(blocks):
        for layer in range(layers + 1):
            places[f"up_blocks.{block}.resnets.{layer}"] = f"output_blocks.{number}.0"
            places[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{number}.1"
            number += 1
        attends = config["up_block_types"][block].startswith("CrossAttn")
        place = f"output_blocks.{number - 1}.{2 if attends else 1}.conv"
        places[f"up_blocks.{block}.upsamplers.0.conv"] = place
    state = {}
    for name, tensor in read_part(folder, "unet").items():
        if ".resnets." in name:
            name = replace_inside(name, RESNET)
        state[replace_start(name, places)] = tensor
    return state


def name_vae(folder: Path) -> State:
    """Return the weights of an autoencoder under their original names."""
    blocks = len(read_config(folder, "vae")["block_out_channels"])
    state = {}
    for name, tensor in read_part(folder, "vae").items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        up = re.search(r"up_blocks\.(\d+)\.", new)
        if up is not None:
            new = new.replace(up[0], f"up.{blocks - 1 - int(up[1])}.")
            new = re.sub(r"resnets\.(\d+)", r"block.\1", new).replace("upsamplers.0", "upsample")
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if "mid_block.attentions.0." in new:
            new = replace_inside(new, VAE_ATTENTION)
            new = new.replace("mid_block.attentions.0", "mid.attn_1")
            if tensor.dim() == 2:
                tensor = tensor[:, :, None, None]
        state[new] = tensor
    return state


def name_open_clip(weights: State) -> State:
    """Return the weights of a text encoder under the names of OpenCLIP."""
    state = {}
    for name, tensor in weights.items():
        layer = re.match(r"encoder\.layers\.(\d+)\.", name)
        if name == "text_projection.weight":
            state["text_projection"] = tensor.T
        elif layer is None:
            state[OPEN_CLIP[name]] = tensor
        elif ".q_proj." in name:
            others = [name.replace(".q_proj.", f".{key}_proj.") for key in "kv"]
            joined = torch.cat([tensor, *(weights[other] for other in others)])
            end = name.rpartition(".")[2]
            state[f"transformer.resblocks.{layer[1]}.attn.in_proj_{end}"] = joined
        elif ".k_proj." not in name and ".v_proj." not in name:
            place = f"transformer.resblocks.{layer[1]}."
            state[replace_inside(name, OPEN_CLIP_LAYER).replace(layer[0], place)] = tensor
    return state
