"""What a LoRA file changes: each of its tensors is assigned to a weight of the checkpoint.

Files are read in the formats of diffusers (peft's `lora_A`, the older `lora.down`), of peft itself,
and of kohya's trainer (`lora_unet_…`), including the block names of SDXL's original code. A file
with a tensor that fits no weight is refused. The assignment is made from the headers of the files,
before a job starts, and the same assignment is used when the LoRA is merged. This module does not
import torch.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthgen.pipelines.base import ModelNotFoundError
from synthgen.pipelines.diffusion.weights import Shapes, read_head, read_json

PREFIXES = {
    "unet": (
        "lora_unet_",
        "unet_",
        "base_model_model_unet_",
        "base_model_model_",
        "diffusion_model_",
        "",
    ),
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoder_", "base_model_model_text_encoder_"),
    "text_encoder_2": ("lora_te2_", "text_encoder_2_", "base_model_model_text_encoder_2_"),
}
ROLES = ("down", "up", "alpha")
DOWN = r"lora_A(?:\.\w+)?\.weight|lora_down\.weight|down\.weight"
UP = r"lora_B(?:\.\w+)?\.weight|lora_up\.weight|up\.weight"
TENSOR_NAME = re.compile(
    rf"(?P<base>.+?)(?:[._]lora(?:_linear_layer)?)?\."
    rf"(?:(?P<down>{DOWN})|(?P<up>{UP})|(?P<alpha>alpha))"
)
# Parts of tensor names by which files of other kinds are recognised.
OTHER_KINDS = {
    ".hada_": "a LoHa (LyCORIS), which is not read",
    ".lokr_": "a LoKr (LyCORIS), which is not read",
    ".oft_": "an OFT (LyCORIS), which is not read",
    ".boft_": "a BOFT (LyCORIS), which is not read",
    ".glora_": "a GLoRA (LyCORIS), which is not read",
    "dora_scale": "a DoRA, whose magnitudes are not read",
    "lora_magnitude_vector": "a DoRA, whose magnitudes are not read",
    ".lora_mid": "a LoCon in Tucker's form (LyCORIS), which is not read",
    "ip_adapter": "an IP-Adapter, which is no LoRA",
    "image_proj": "an IP-Adapter, which is no LoRA",
    "controlnet": "a ControlNet, which is no LoRA",
    "control_model": "a ControlNet, which is no LoRA",
    "string_to_param": "a textual inversion (the embedding of a word), which is no LoRA",
    "emb_params": "a textual inversion (the embedding of a word), which is no LoRA",
    "first_stage_model": "a whole checkpoint in one file, which is no LoRA",
}
# Patterns of tensor names by which LoRAs of other networks are recognised.
OTHER_NETWORKS = {
    re.compile("double_blocks|single_transformer_blocks|single_blocks"): "FLUX",
    re.compile("joint_blocks"): "Stable Diffusion 3",
    re.compile(
        r"\btransformer\.|lora_transformer_"
    ): "a transformer (FLUX, Stable Diffusion 3 or another)",
}
ADAPTER = "adapter_config.json"  # the configuration that peft writes beside its files
# Names of modules in diffusers, and in the original code of SDXL.
ORIGINAL_RESNET_NAMES = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ORIGINAL_NAMES = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
UNET_BLOCK = re.compile(r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.(\w+)\.(\d+)\.(.+)")
# Ends of the names of a text encoder's projections, and their ends in some files.
PROJECTION_ENDS = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "out_proj": "to_out",
}


@dataclass(frozen=True)
class LoraLayer:
    """A low-rank change of one weight: up @ down, times alpha / rank.

    Attributes:
        part: the part of the checkpoint, such as "unet".
        weight: name of the weight in the part's files, without "text_model.".
        down: name of the tensor (r, in, …) in the LoRA's file.
        up: name of the tensor (out, r, …).
        alpha: name of the tensor with one number; None: `factor` is used.
        factor: alpha / rank, if no tensor contains alpha.
        rank: the rank r.
    """

    part: str
    weight: str
    down: str
    up: str
    alpha: str | None
    factor: float
    rank: int


def read_layers(
    file: Path, parts: Mapping[str, Shapes], unet: Mapping[str, Any]
) -> list[LoraLayer]:
    """Assign every tensor of a LoRA's file to a weight of a checkpoint.

    Args:
        parts: the shapes of the tensors of each part of the checkpoint.
        unet: the UNet's config.json.

    Raises:
        ModelNotFoundError: the file is broken, is of another kind, or was made for another
            checkpoint; the message says which.
    """
    shapes, metadata = read_head(file)
    other_kind = _recognise_other_kind(shapes)
    if other_kind is not None:
        raise ModelNotFoundError(f"{file} is {other_kind}; give a plain LoRA")
    targets = _list_targets(parts, unet)
    tensors: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    unknown = []
    for name in shapes:
        match = TENSOR_NAME.fullmatch(name)
        target = targets.get(_replace_dots(match["base"])) if match is not None else None
        if match is None or target is None:
            unknown.append(name)
            continue
        for role in ROLES:
            if match[role]:
                _assign_tensor(file, tensors[target], role, name)
    if unknown:
        raise ModelNotFoundError(_describe_unknown(file, unknown, len(shapes), parts.keys()))
    if not tensors:
        raise ModelNotFoundError(f"{file} holds no tensors; it is no LoRA")
    settings = _read_settings(file, shapes, metadata)
    weights: dict[str, Shapes] = {}
    for part, part_shapes in parts.items():
        weights[part] = {_shorten_name(name): shape for name, shape in part_shapes.items()}
    layers = []
    for target, names in sorted(tensors.items()):
        layers.append(_make_layer(file, target, names, shapes, weights[target[0]], settings))
    return layers


def _assign_tensor(file: Path, names: dict[str, str], role: str, name: str) -> None:
    """Add a tensor to those of a weight, or raise ModelNotFoundError for a second one."""
    if role in names:
        raise ModelNotFoundError(
            f"{file} has {names[role]} and {name} for the same weight; "
            "give a LoRA with one tensor for it"
        )
    names[role] = name


def _make_layer(
    file: Path,
    target: tuple[str, str],
    names: Mapping[str, str],
    shapes: Shapes,
    weights: Shapes,
    settings: Mapping[str, Any],
) -> LoraLayer:
    """Check the tensors that change a weight, and return them as a layer.

    Args:
        target: part and name of the weight.
        names: names of the tensors by role.
        shapes: the shapes of the tensors in the LoRA's file.
        weights: shapes of the part's weights.
        settings: adapter configuration of each part.
    """
    part, weight = target
    if not {"down", "up"} <= names.keys():
        present = next(iter(names.values()))
        raise ModelNotFoundError(
            f"{file} has {present} without its counterpart; "
            "it is cut short or edited, so make it again"
        )
    down = shapes[names["down"]]
    up = shapes[names["up"]]
    base = weights[weight]
    rank = down[0] if down else 0
    fits = len(up) >= 2 and up[1] == rank and set(up[2:]) <= {1}
    if not fits or _trim_shape((up[0], *down[1:])) != _trim_shape(base):
        raise ModelNotFoundError(
            f"{file} was made for another checkpoint: {names['down']} {list(down)} and "
            f"{names['up']} {list(up)} do not fit {weight} {list(base)} of the {part}; "
            "use it with the checkpoint that it was made for"
        )
    alpha = names.get("alpha")
    if alpha is None:
        factor = _compute_factor(settings.get(part, {}), weight.removesuffix(".weight"), rank)
        return LoraLayer(part, weight, names["down"], names["up"], None, factor, rank)
    if math.prod(shapes[alpha]) != 1:
        raise ModelNotFoundError(
            f"{file}: {alpha} has the shape {list(shapes[alpha])}, not one number"
        )
    return LoraLayer(part, weight, names["down"], names["up"], alpha, 1.0, rank)


def _trim_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without the ones at its end: a 1 x 1 convolution is a linear layer."""
    if set(shape[2:]) <= {1}:
        return shape[:2]
    return shape


def _list_targets(
    parts: Mapping[str, Shapes], unet: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
    """Return part and weight for every name, with underscores, that a file may use for a weight."""
    targets = {}
    for part, shapes in parts.items():
        for name, shape in shapes.items():
            if not name.endswith(".weight") or len(shape) not in (2, 4):
                continue
            weight = _shorten_name(name)
            for alias in _list_aliases(part, weight.removesuffix(".weight"), unet):
                for prefix in PREFIXES.get(part, ()):
                    targets[prefix + alias] = (part, weight)
    return targets


def _list_aliases(part: str, module: str, unet: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names, with underscores, of a module in the formats of LoRA files."""
    names = [module]
    if part == "unet":
        original = _find_original_name(module, unet)
        if original is not None:
            names.append(original)
    for name in names:
        yield _replace_dots(name)
        yield _replace_dots(name.replace(".to_out.0", ".to_out"))
    if part != "unet":
        yield _replace_dots(f"text_model.{module}")
        for end, other_end in PROJECTION_ENDS.items():
            if module.endswith(end):
                yield _replace_dots(f"text_model.{module.removesuffix(end)}{other_end}")


def _find_original_name(module: str, unet: Mapping[str, Any]) -> str | None:
    """Return the name of a UNet's module in the original code, which kohya uses for SDXL."""
    if module in ORIGINAL_NAMES:
        return ORIGINAL_NAMES[module]
    layers = unet.get("layers_per_block", 2)
    match = UNET_BLOCK.fullmatch(module)
    if match is None or not isinstance(layers, int):
        return None
    side, block_number, kind, layer_number, rest = match.groups()
    block = int(block_number or 0)
    layer = int(layer_number)
    inner = ORIGINAL_RESNET_NAMES.get(rest, rest) if kind == "resnets" else rest
    if side == "mid_block":
        place = 1 if kind == "attentions" else 2 * layer
        return f"middle_block.{place}.{inner}"
    first = block * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op"
    if kind == "upsamplers":
        types = unet.get("up_block_types", [])
        place = 2 if "CrossAttn" in types[block] else 1
        return f"output_blocks.{first + layers}.{place}.conv"
    place = 1 if kind == "attentions" else 0
    if side == "down_blocks":
        return f"input_blocks.{first + layer + 1}.{place}.{inner}"
    return f"output_blocks.{first + layer}.{place}.{inner}"


def _shorten_name(name: str) -> str:
    """Return a tensor's name without "text_model.", which some versions of transformers omit."""
    return name.removeprefix("text_model.")


def _replace_dots(name: str) -> str:
    """Return the name of a module with underscores, as kohya's trainer writes it."""
    return name.replace(".processor.", ".").replace(".", "_")


def _read_settings(
    file: Path, shapes: Shapes, metadata: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Return the adapter configuration of each part.

    diffusers writes it into the file, peft into another file beside it.
    """
    settings: dict[str, dict[str, Any]] = defaultdict(dict)
    if "lora_adapter_metadata" in metadata:
        try:
            entries = dict(json.loads(metadata["lora_adapter_metadata"]))
        except ValueError:
            raise ModelNotFoundError(
                f"{file}: its metadata cannot be read as JSON; make the LoRA again"
            ) from None
        for key, value in entries.items():
            part, _, name = key.partition(".")
            settings[part][name] = value
    elif reads_adapter_config(file, shapes):
        adapter = read_json(file.parent / ADAPTER)
        for part in PREFIXES:
            settings[part] = adapter
    for part_settings in settings.values():
        if part_settings.get("use_dora"):
            raise ModelNotFoundError(f"{file} is {OTHER_KINDS['dora_scale']}; give a plain LoRA")
    return settings


def reads_adapter_config(file: Path, shapes: Shapes) -> bool:
    """Return whether the configuration beside a file belongs to it, as it does to peft's files."""
    is_peft = any(name.startswith("base_model.model.") for name in shapes)
    return is_peft and (file.parent / ADAPTER).is_file()


def _compute_factor(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """Return alpha / rank by the configuration of an adapter; 1 without a configuration."""
    alpha = settings.get("lora_alpha", rank)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = value
    divisor = math.sqrt(rank) if settings.get("use_rslora") else rank
    return float(alpha) / divisor


def _recognise_other_kind(shapes: Shapes) -> str | None:
    """Return the kind of a file that contains no plain LoRA; None if it may be a LoRA."""
    for name in shapes:
        for mark, kind in OTHER_KINDS.items():
            if mark in name:
                return kind
    if not shapes or any("lora" in name for name in shapes):
        return None
    if len(shapes) <= 4 and all(len(shape) <= 2 for shape in shapes.values()):
        return OTHER_KINDS["emb_params"]
    if any(name.startswith(("model.diffusion_model.", "double_blocks.")) for name in shapes):
        return OTHER_KINDS["first_stage_model"]
    if any(name.endswith((".diff", ".diff_b")) for name in shapes):
        return "a set of whole differences (LyCORIS), which is not read"
    return "no LoRA: none of its tensors has `lora` in its name"


def _describe_unknown(file: Path, unknown: list[str], total: int, parts: Collection[str]) -> str:
    """Return the message for a file with tensors that fit no weight.

    Args:
        unknown: names of these tensors.
        total: number of tensors in the file.
        parts: the parts of the checkpoint.
    """
    network = _recognise_network(unknown)
    if network is None and "text_encoder_2" not in parts and _changes_second_encoder(unknown):
        network = "SDXL (it changes a second text encoder)"
    if network is None:
        origin = "was made for another checkpoint"
    else:
        origin = f"was made for {network}, not for this checkpoint"
    return (
        f"{file} {origin}: {len(unknown)} of its {total} tensors fit no weight here, "
        f"such as {unknown[0]}; use it with the checkpoint that it was made for"
    )


def _recognise_network(names: list[str]) -> str | None:
    """Return the other network to which tensors belong; None if it is unknown."""
    for pattern, network in OTHER_NETWORKS.items():
        if any(pattern.search(name) for name in names):
            return network
    return None


def _changes_second_encoder(names: list[str]) -> bool:
    return any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in names)
