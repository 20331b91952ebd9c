"""What a LoRA file changes: each of its tensors is assigned to a weight of the checkpoint, or the file is refused.

Files are read in the formats of diffusers (peft's `lora_A`, the older `lora.down`), of peft itself, and of kohya's trainer
(`lora_unet_…`), with SDXL's block names of the original code too. The assignment is made from the heads of the files, before
anything is begun, and the same assignment is merged later: nothing of a file is dropped. Imports no torch.
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
SUFFIX = re.compile(
    r"(?P<base>.+?)(?:[._]lora(?:_linear_layer)?)?\.(?:(?P<down>lora_A(?:\.\w+)?\.weight|lora_down\.weight|down\.weight)"
    r"|(?P<up>lora_B(?:\.\w+)?\.weight|lora_up\.weight|up\.weight)|(?P<alpha>alpha))"
)
OTHERS = {  # what is in the names of other files' tensors
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
NETWORKS = {  # what is in the names of their tensors
    re.compile("double_blocks|single_transformer_blocks|single_blocks"): "FLUX",
    re.compile("joint_blocks"): "Stable Diffusion 3",
    re.compile(
        r"\btransformer\.|lora_transformer_"
    ): "a transformer (FLUX, Stable Diffusion 3 or another)",
}
ADAPTER = "adapter_config.json"  # settings beside a file that peft has written


@dataclass(frozen=True)
class LoraLayer:
    """A low-rank change of one weight: up @ down, times alpha / rank.

    Attributes:
        part: of the checkpoint, such as "unet".
        weight: name of the weight in the part's files, without "text_model.".
        down: name of the tensor (r, in, …) in the LoRA's file.
        up: name of the tensor (out, r, …).
        alpha: name of the tensor with one number; None: `factor` holds.
        factor: alpha / rank, where no tensor tells alpha.
        rank: r.
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
        ModelNotFoundError: the file is broken, is of another kind, or was made for another checkpoint; the message says which.
    """
    shapes, metadata = read_head(file)
    if kind := _other_kind(shapes):
        raise ModelNotFoundError(f"{file} is {kind}; give a plain LoRA")
    targets = _targets(parts, unet)
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    unknown = []
    for name in shapes:
        match = SUFFIX.fullmatch(name)
        target = targets.get(_underscored(match["base"])) if match is not None else None
        if match is None or target is None:
            unknown.append(name)
            continue
        role = next(role for role in ("down", "up", "alpha") if match[role])
        if role in found[target]:
            raise ModelNotFoundError(
                f"{file} has {found[target][role]} and {name} for the same weight; give a LoRA made once"
            )
        found[target][role] = name
    if unknown:
        raise ModelNotFoundError(_foreign(file, unknown, len(shapes), parts.keys()))
    if not found:
        raise ModelNotFoundError(f"{file} holds no tensors; it is no LoRA")
    settings = _settings(file, shapes, metadata)
    weights = {
        part: {_plain(name): shape for name, shape in found.items()}
        for part, found in parts.items()
    }
    return [
        _layer(file, target, names, shapes, weights[target[0]], settings)
        for target, names in sorted(found.items())
    ]


def _layer(
    file: Path,
    target: tuple[str, str],
    names: Mapping[str, str],
    shapes: Shapes,
    weights: Shapes,
    settings: Mapping[str, Any],
) -> LoraLayer:
    """Check the tensors of one weight against it."""
    part, weight = target
    if not {"down", "up"} <= names.keys():
        have = next(iter(names.values()))
        raise ModelNotFoundError(
            f"{file} has {have} without its counterpart; it is cut short or edited, so make it again"
        )
    down, up, base = shapes[names["down"]], shapes[names["up"]], weights[weight]
    rank = down[0] if down else 0
    fits = len(up) >= 2 and up[1] == rank and all(n == 1 for n in up[2:])
    if not fits or _trimmed((up[0], *down[1:])) != _trimmed(base):
        raise ModelNotFoundError(
            f"{file} was made for another checkpoint: {names['down']} {list(down)} and {names['up']} {list(up)} "
            f"do not fit {weight} {list(base)} of the {part}; use it with the checkpoint that it was made for"
        )
    if "alpha" in names and math.prod(shapes[names["alpha"]]) != 1:
        raise ModelNotFoundError(
            f"{file}: {names['alpha']} has the shape {list(shapes[names['alpha']])}, not one number"
        )
    module = weight.removesuffix(".weight")
    factor = 1.0 if "alpha" in names else _factor(settings.get(part, {}), module, rank)
    return LoraLayer(part, weight, names["down"], names["up"], names.get("alpha"), factor, rank)


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the ones at its end: a 1 x 1 convolution is a linear layer."""
    return shape if not shape[2:] or any(n != 1 for n in shape[2:]) else shape[:2]


def _targets(parts: Mapping[str, Shapes], unet: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Part and weight of every name, with underscores, that a file may call a weight by."""
    targets = {}
    for part, shapes in parts.items():
        for name, shape in shapes.items():
            if not name.endswith(".weight") or len(shape) not in (2, 4):
                continue
            plain = _plain(name)
            for alias in _aliases(part, plain.removesuffix(".weight"), unet):
                for prefix in PREFIXES.get(part, ()):
                    targets[prefix + alias] = (part, plain)
    return targets


def _aliases(part: str, module: str, unet: Mapping[str, Any]) -> Iterator[str]:
    """The names, with underscores, of one module in the formats of LoRA files."""
    for name in (module, _original(module, unet) if part == "unet" else None):
        if name is not None:
            yield _underscored(name)
            yield _underscored(name.replace(".to_out.0", ".to_out"))
    if part != "unet":
        yield _underscored(f"text_model.{module}")
        for old, new in (
            ("q_proj", "to_q"),
            ("k_proj", "to_k"),
            ("v_proj", "to_v"),
            ("out_proj", "to_out"),
        ):
            if module.endswith(old):
                yield _underscored(f"text_model.{module.removesuffix(old)}{new}")


def _original(module: str, unet: Mapping[str, Any]) -> str | None:
    """The name of a UNet's module in the original code, which kohya's trainer uses for SDXL."""
    if outer := OUTER.get(module):
        return outer
    layers = unet.get("layers_per_block", 2)
    match = re.fullmatch(
        r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.(\w+)\.(\d+)\.(.+)", module
    )
    if match is None or not isinstance(layers, int):
        return None
    side, block, kind, j, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    inner = INNER.get(rest, rest) if kind == "resnets" else rest
    if side == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * j}.{inner}"
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.op"
    if kind == "upsamplers":
        types = unet.get("up_block_types", [])
        place = 2 if "CrossAttn" in types[block] else 1
        return f"output_blocks.{block * (layers + 1) + layers}.{place}.conv"
    place = 1 if kind == "attentions" else 0
    if side == "down_blocks":
        return f"input_blocks.{block * (layers + 1) + j + 1}.{place}.{inner}"
    return f"output_blocks.{block * (layers + 1) + j}.{place}.{inner}"


INNER = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def _plain(name: str) -> str:
    """A tensor's name without "text_model.", which some versions of transformers write and others do not."""
    return name.removeprefix("text_model.")


def _underscored(name: str) -> str:
    return name.replace(".processor.", ".").replace(".", "_")


def _settings(file: Path, shapes: Shapes, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The settings of each part's adapter, where diffusers (in the file) or peft (beside it) has written them."""
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
        settings["unet"] = settings["text_encoder"] = settings["text_encoder_2"] = read_json(
            file.parent / ADAPTER
        )
    for found in settings.values():
        if found.get("use_dora"):
            raise ModelNotFoundError(f"{file} is {OTHERS['dora_scale']}; give a plain LoRA")
    return settings


def reads_adapter_config(file: Path, shapes: Shapes) -> bool:
    """Whether the settings beside a file belong to it: peft's own files have them."""
    return (
        any(name.startswith("base_model.model.") for name in shapes)
        and (file.parent / ADAPTER).is_file()
    )


def _factor(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / rank by an adapter's settings; 1 without any."""
    alpha = settings.get("lora_alpha", rank)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = value
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _other_kind(shapes: Shapes) -> str | None:
    """What a file is that holds no plain LoRA; None if it may be one."""
    for name in shapes:
        for mark, kind in OTHERS.items():
            if mark in name:
                return kind
    if shapes and not any("lora" in name for name in shapes):
        if len(shapes) <= 4 and all(len(shape) <= 2 for shape in shapes.values()):
            return OTHERS["emb_params"]
        if any(name.startswith(("model.diffusion_model.", "double_blocks.")) for name in shapes):
            return OTHERS["first_stage_model"]
        if any(name.endswith((".diff", ".diff_b")) for name in shapes):
            return "a set of whole differences (LyCORIS), which is not read"
        return "no LoRA: none of its tensors is called so"
    return None


def _foreign(file: Path, unknown: list[str], of: int, parts: Collection[str]) -> str:
    """What to say of a file with tensors that fit no weight."""
    network = next(
        (made for mark, made in NETWORKS.items() if any(map(mark.search, unknown))), None
    )
    if (
        network is None
        and "text_encoder_2" not in parts
        and any(n.startswith(("lora_te2_", "text_encoder_2.")) for n in unknown)
    ):
        network = "SDXL (it changes a second text encoder)"
    made = (
        f"was made for {network}, not for this checkpoint"
        if network
        else "was made for another checkpoint"
    )
    return (
        f"{file} {made}: {len(unknown)} of its {of} tensors fit no weight here, such as {unknown[0]}; "
        "use it with the checkpoint that it was made for"
    )
