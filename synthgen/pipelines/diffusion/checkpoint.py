"""A checkpoint's settings and the heads of its weights: read, and held against each other. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthgen.pipelines.base import ModelNotFoundError
from synthgen.pipelines.diffusion.weights import (
    STEMS,
    Shapes,
    VariantNotFoundError,
    Weights,
    choose_weights,
    find_variants,
    read_json,
    read_shapes,
)

CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
LIBRARIES = ("diffusers", "transformers")
NEEDED = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
WITHIN = (  # can start within their schedule
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
FROM_NOISE = ("PNDMScheduler", "LMSDiscreteScheduler", "DPMSolverSinglestepScheduler")
SPLIT = (
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)  # two evaluations a step
EDM = (
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
)  # what they predict is no other scheduler's
SCHEDULER_CLASSES = (*WITHIN, *FROM_NOISE, *SPLIT, *EDM)
OWN = (
    "StableDiffusionPipeline",
    "AnnotationMaskPipeline",
)  # of checkpoints that `synthgen train` writes
IDS = 6  # numbers that SDXL reads beside the words: sizes and crop


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in Stable Diffusion's format, as far as its settings and heads say it.

    Attributes:
        kind: the class that its model_index.json names.
        scheduler: class of its scheduler.
        classes: of each part that has weights.
        configs: the settings of the scheduler, and of each part that has weights.
        weights: the files that each part is loaded from.
        shapes: of each part's tensors.
    """

    folder: Path
    kind: str
    scheduler: str
    classes: dict[str, str]
    configs: dict[str, dict[str, Any]]
    weights: dict[str, Weights]
    shapes: dict[str, Shapes]

    @property
    def has_two_encoders(self) -> bool:
        """Whether it is SDXL's."""
        return "text_encoder_2" in self.configs

    @property
    def latent_channels(self) -> int:
        return int(self.configs["vae"].get("latent_channels", 4))


def read_checkpoint(folder: Path, variant: str | None = None) -> Checkpoint:
    """Read the settings and heads of a checkpoint, and check that it can be loaded.

    Args:
        variant: of the weights, where a part has them; None: the plain ones, or fp16 where a part has these alone.

    Raises:
        ModelNotFoundError: a file is missing, broken or of another network; the message names it and the way on.
    """
    index = read_json(folder / "model_index.json")
    kind = _check_classes(index)
    parts = [part for part in STEMS if part in NEEDED or _entry(index, part)[1]]
    names = {part: [file.name for file in (folder / part).glob("*")] for part in parts}
    weights = _choose(folder, names, variant)
    missing = [part for part in NEEDED if not _entry(index, part)[1]]
    if missing:
        raise ModelNotFoundError(
            f"its model_index.json names no {', '.join(missing)}; it is not in Stable Diffusion's format"
        )
    scheduler = str(_entry(index, "scheduler")[1])
    if scheduler not in SCHEDULER_CLASSES:
        raise ModelNotFoundError(
            f"its scheduler is a {scheduler}, which is not read; use a checkpoint that has another"
        )
    settings = {"scheduler": read_json(folder / "scheduler" / "scheduler_config.json")}
    for part in ("tokenizer", "tokenizer_2"):
        if part == "tokenizer" or _entry(index, part)[1]:
            _check_tokenizer(folder / part)
    configs = settings | {part: read_json(folder / part / "config.json") for part in parts}
    for part, config in configs.items():
        if config.get("quantization_config"):
            raise ModelNotFoundError(
                f"its {part} is quantised, which is not read; use the checkpoint in float16 or float32"
            )
    classes = {part: str(_entry(index, part)[1]) for part in parts}
    shapes = {part: read_shapes(folder / part, chosen) for part, chosen in weights.items()}
    checkpoint = Checkpoint(folder, kind, scheduler, classes, configs, weights, shapes)
    try:
        _check_unet(checkpoint)
        for part in parts:
            _check_shapes(part, classes[part], configs[part], shapes[part])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelNotFoundError(
            f"a config.json of {folder} lacks or misstates {error}; download it again"
        ) from None
    return checkpoint


def _entry(index: dict[str, Any], part: str) -> tuple[Any, Any]:
    """The library and the class of a part in a model_index.json; (None, None) without the part."""
    found = index.get(part)
    return (found[0], found[1]) if isinstance(found, list) and len(found) == 2 else (None, None)


def _check_classes(index: dict[str, Any]) -> str:
    """Check the classes of the parts, and return that of the whole."""
    kind = index.get("_class_name", "a checkpoint without a class")
    kind = kind[-1] if isinstance(kind, list) and kind else str(kind)
    if "_class_name" not in index:
        return kind
    for part in ("transformer", "prior", "decoder"):
        if _entry(index, part)[1] and not _entry(index, "unet")[1]:
            network = _entry(index, part)[1]
            raise ModelNotFoundError(
                f"{kind}, whose network is a {network}, is not read; use a checkpoint of Stable Diffusion 1, 2 or XL"
            )
    for part, allowed in CLASSES.items():
        library, name = _entry(index, part)
        if name and (name not in allowed or library not in LIBRARIES):
            raise ModelNotFoundError(
                f"{kind}: its {part} is a {name} of {library}, which is not read (a {allowed[0]} is); "
                "use a checkpoint of Stable Diffusion 1, 2 or XL"
            )
    if _entry(index, "text_encoder_2")[1] and not _entry(index, "text_encoder")[1]:
        raise ModelNotFoundError(
            f"{kind} without a text_encoder: a refiner, which only finishes another checkpoint's images; use the base checkpoint"
        )
    return kind


def _choose(folder: Path, names: dict[str, list[str]], variant: str | None) -> dict[str, Weights]:
    """Choose the files of each part's weights."""
    chosen = {part: choose_weights(found, STEMS[part], variant) for part, found in names.items()}
    variants = {part: find_variants(found, STEMS[part]) for part, found in names.items()}
    have = sorted({name for found in variants.values() for name in found})
    shown = f"it has {', '.join(have)}" if have else "leave the key out, for the plain ones"
    if variant is not None and variant not in have and any(chosen.values()):
        raise VariantNotFoundError(f"{folder} has no {variant} weights; {shown}")
    missing = [part for part, found in chosen.items() if found is None]
    for part in missing:
        if variants[part]:
            alone = ", ".join(variants[part])
            raise VariantNotFoundError(
                f"the {part} of {folder} has {alone} weights alone; give {variants[part][0]}"
            )
    if missing:
        pickled = [
            part
            for part in missing
            if any(name.endswith((".bin", ".ckpt", ".pt", ".pth")) for name in names[part])
        ]
        way_on = (
            "pickled weights are not loaded: convert them with `save_pretrained(..., safe_serialization=True)`"
            if pickled
            else "download the whole checkpoint again"
        )
        raise ModelNotFoundError(
            f"{folder} has no safetensors weights for {', '.join(missing)}; {way_on}"
        )
    return {part: found for part, found in chosen.items() if found is not None}


def _check_tokenizer(folder: Path) -> None:
    have = {file.name for file in folder.glob("*")}
    if "tokenizer.json" not in have and not {"vocab.json", "merges.txt"} <= have:
        raise ModelNotFoundError(
            f"there is no {folder.name}/tokenizer.json, nor vocab.json and merges.txt, in {folder.parent}; "
            "download the whole checkpoint again"
        )


def _check_unet(checkpoint: Checkpoint) -> None:
    """Check that the UNet reads just what the pipelines give it: latents, words, and SDXL's sizes."""
    unet, kind = checkpoint.configs["unet"], checkpoint.kind
    if unet.get("attention_type") == "gated-text-image":
        raise ModelNotFoundError(
            f"{kind} (GLIGEN text-image) is told of objects by images of them too; use GLIGEN's text-box"
        )
    for key in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "encoder_hid_dim"):
        if unet.get(key) is not None:
            more = f"{key}: {unet[key]}"
            raise ModelNotFoundError(
                f"{kind}: its unet reads more than latents and words ({more}); use one of text to image"
            )
    added = unet.get("addition_embed_type")
    if added not in (None, "text_time") or (added is not None) != checkpoint.has_two_encoders:
        encoders = "two text encoders" if checkpoint.has_two_encoders else "one text encoder"
        raise ModelNotFoundError(
            f"{kind}: unet.addition_embed_type is {added}, which does not fit {encoders}; take all parts of one checkpoint"
        )
    if checkpoint.has_two_encoders:
        words = int(checkpoint.configs["text_encoder_2"].get("projection_dim", 512))
        reads = int(unet.get("projection_class_embeddings_input_dim") or 0)
        numbers = int(unet.get("addition_time_embed_dim") or 0)
        if numbers and reads != words + IDS * numbers:
            raise ModelNotFoundError(
                f"{kind}: its unet reads {reads} numbers beside the words, not {words} + {IDS} x {numbers}: a refiner's; "
                "use the base checkpoint"
            )
    latents, out = checkpoint.latent_channels, int(unet.get("out_channels", 4))
    if out != latents:
        raise ModelNotFoundError(
            f"unet.out_channels is {out}, but its vae has {latents} latent channels; take all parts of one checkpoint"
        )
    texts = [
        config for part, config in checkpoint.configs.items() if part.startswith("text_encoder")
    ]
    width = sum(int(config.get("hidden_size", 512)) for config in texts)
    reads_words = unet.get("cross_attention_dim", 1280)
    if isinstance(reads_words, int) and reads_words != width:
        raise ModelNotFoundError(
            f"unet.cross_attention_dim is {reads_words}, but its text encoding has {width} numbers a token; "
            "take all parts of one checkpoint"
        )


def input_problem(checkpoint: Checkpoint, mask: bool = False) -> str | None:
    """Why a UNet's input channels do not fit; None if they do.

    Args:
        mask: whether a UNet is read too that `synthgen train` has widened by the latents of a mask.
    """
    channels, latents = (
        int(checkpoint.configs["unet"].get("in_channels", 4)),
        checkpoint.latent_channels,
    )
    if channels == latents or (mask and channels == 2 * latents and checkpoint.kind in OWN):
        return None
    reads = {
        2 * latents + 1: "an inpainting UNet, which reads a masked image too",
        2 * latents: "a UNet that reads an image too (pix2pix, or a mask)",
    }.get(channels, "a UNet that reads more than latents")
    return (
        f"unet.in_channels is {channels}, but its vae has {latents} latent channels: {checkpoint.kind} has {reads}; "
        "use the text-to-image checkpoint"
    )


def _check_shapes(part: str, kind: str, config: dict[str, Any], shapes: Shapes) -> None:
    """Check the names and shapes of a part's tensors that its config.json decides, without the network itself."""
    wanted: Shapes = {}
    if part == "unet":
        wanted = _unet_shapes(config)
    elif kind == "AutoencoderKL":
        wanted = _vae_shapes(config)
    elif part.startswith("text_encoder"):
        wanted = _text_shapes(config)
        shapes = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    for name, shape in wanted.items():
        if name not in shapes:
            raise ModelNotFoundError(
                f"its {part} has no tensor {name}, which its config.json asks for: of another checkpoint"
            )
        if shapes[name] != shape:
            raise ModelNotFoundError(
                f"{name} of its {part} has the shape {list(shapes[name])}, but by its config.json {list(shape)}: "
                "of another checkpoint"
            )


def _each(value: Any, blocks: int) -> list[int]:
    return [int(n) for n in value] if isinstance(value, Sequence) else [int(value)] * blocks


def _unet_shapes(config: dict[str, Any]) -> Shapes:
    """The first convolution of every layer, and what the words go through."""
    channels = [int(n) for n in config["block_out_channels"]]
    layers = _each(config.get("layers_per_block", 2), len(channels))
    words = _each(config.get("cross_attention_dim", 1280), len(channels))
    kernel = (int(config.get("conv_in_kernel", 3)),) * 2
    wanted: Shapes = {
        "conv_in.weight": (channels[0], int(config.get("in_channels", 4)), *kernel),
        "conv_out.weight": (
            int(config.get("out_channels", 4)),
            channels[0],
            *((int(config.get("conv_out_kernel", 3)),) * 2),
        ),
    }
    before = channels[0]
    for i, (width, count, kind) in enumerate(
        zip(channels, layers, config["down_block_types"], strict=False)
    ):
        for j in range(count if kind.endswith("DownBlock2D") else 0):
            wanted[f"down_blocks.{i}.resnets.{j}.conv1.weight"] = (
                width,
                before if j == 0 else width,
                3,
                3,
            )
            if kind == "CrossAttnDownBlock2D":
                wanted[f"down_blocks.{i}.attentions.{j}.transformer_blocks.0.attn2.to_k.weight"] = (
                    width,
                    words[i],
                )
        before = width
    for i, (width, count) in enumerate(zip(channels[::-1], layers[::-1], strict=True)):
        for j in range(count + 1 if config["up_block_types"][i].endswith("UpBlock2D") else 0):
            wanted[f"up_blocks.{i}.resnets.{j}.conv2.weight"] = (width, width, 3, 3)
            if config["up_block_types"][i] == "CrossAttnUpBlock2D":
                wanted[f"up_blocks.{i}.attentions.{j}.transformer_blocks.0.attn2.to_k.weight"] = (
                    width,
                    words[-1 - i],
                )
    return wanted


def _vae_shapes(config: dict[str, Any]) -> Shapes:
    channels, latents = (
        [int(n) for n in config["block_out_channels"]],
        int(config["latent_channels"]),
    )
    wanted: Shapes = {
        "encoder.conv_in.weight": (channels[0], int(config.get("in_channels", 3)), 3, 3),
        "encoder.conv_out.weight": (2 * latents, channels[-1], 3, 3),
        "decoder.conv_in.weight": (channels[-1], latents, 3, 3),
        "decoder.conv_out.weight": (int(config.get("out_channels", 3)), channels[0], 3, 3),
    }
    for i, width in enumerate(channels):
        wanted[f"encoder.down_blocks.{i}.resnets.0.conv2.weight"] = (width, width, 3, 3)
        wanted[f"decoder.up_blocks.{len(channels) - 1 - i}.resnets.0.conv2.weight"] = (
            width,
            width,
            3,
            3,
        )
    return wanted


def _text_shapes(config: dict[str, Any]) -> Shapes:
    width = int(config.get("hidden_size", 512))
    wanted: Shapes = {
        "embeddings.token_embedding.weight": (int(config.get("vocab_size", 49408)), width),
        "embeddings.position_embedding.weight": (
            int(config.get("max_position_embeddings", 77)),
            width,
        ),
        "final_layer_norm.weight": (width,),
    }
    for i in range(int(config.get("num_hidden_layers", 12))):
        wanted[f"encoder.layers.{i}.mlp.fc1.weight"] = (
            int(config.get("intermediate_size", 2048)),
            width,
        )
        wanted[f"encoder.layers.{i}.self_attn.q_proj.weight"] = (width, width)
    return wanted
