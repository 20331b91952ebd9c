"""Read a checkpoint's configurations and weight headers, and check that they fit together.

This module does not import torch.
"""

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
REQUIRED_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
# Schedulers that can start within their schedule.
PARTIAL_SCHEDULERS = (
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
# Schedulers that can start only at their first step.
FULL_SCHEDULERS = ("PNDMScheduler", "LMSDiscreteScheduler", "DPMSolverSinglestepScheduler")
# Schedulers with two evaluations per step.
TWO_EVALUATION_SCHEDULERS = (
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)
# Schedulers whose networks predict something that no other scheduler can use.
EDM_SCHEDULERS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
SCHEDULER_CLASSES = (
    *PARTIAL_SCHEDULERS,
    *FULL_SCHEDULERS,
    *TWO_EVALUATION_SCHEDULERS,
    *EDM_SCHEDULERS,
)
# Classes of the checkpoints that `synthgen train` writes.
TRAINED_CLASSES = ("StableDiffusionPipeline", "AnnotationMaskPipeline")
TIME_IDS = 6  # numbers that SDXL reads besides the prompt: sizes and crop


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in Stable Diffusion's format, described by its configurations and headers.

    Attributes:
        folder: the local folder.
        kind: the class that its model_index.json names.
        scheduler: class of its scheduler.
        classes: class of each part that has weights.
        configs: configuration of the scheduler, and of each part that has weights.
        weights: the files from which each part is loaded.
        shapes: shapes of each part's tensors.
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
        """Whether it has two text encoders, as SDXL has."""
        return "text_encoder_2" in self.configs

    @property
    def latent_channels(self) -> int:
        """Number of channels of its latents."""
        return int(self.configs["vae"].get("latent_channels", 4))


def read_checkpoint(folder: Path, variant: str | None = None) -> Checkpoint:
    """Read the configurations and headers of a checkpoint, and check that it can be loaded.

    Args:
        variant: the variant of the weights, for the parts that have it; None: the plain weights, or
            fp16 for a part that has no plain ones.

    Raises:
        ModelNotFoundError: a file is missing, broken or of another network; the message names it
            and the solution.
    """
    index = read_json(folder / "model_index.json")
    kind = _check_classes(index)
    parts = []
    for part in STEMS:
        if part in REQUIRED_PARTS or _has_part(index, part):
            parts.append(part)
    weights = _choose_weights(folder, parts, variant)
    scheduler = _check_parts(index)
    configs = {"scheduler": read_json(folder / "scheduler" / "scheduler_config.json")}
    _check_tokenizer(folder / "tokenizer")
    if _has_part(index, "tokenizer_2"):
        _check_tokenizer(folder / "tokenizer_2")
    for part in parts:
        configs[part] = read_json(folder / part / "config.json")
    _check_quantization(configs)
    classes = {part: str(_read_entry(index, part)[1]) for part in parts}
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


def _read_entry(index: dict[str, Any], part: str) -> tuple[Any, Any]:
    """Return the library and the class of a part in a model_index.json; (None, None) if absent."""
    entry = index.get(part)
    if isinstance(entry, list) and len(entry) == 2:
        return entry[0], entry[1]
    return None, None


def _has_part(index: dict[str, Any], part: str) -> bool:
    """Return whether a model_index.json names a class for a part."""
    return bool(_read_entry(index, part)[1])


def _check_classes(index: dict[str, Any]) -> str:
    """Check the classes of the parts, and return the class of the whole checkpoint."""
    kind = index.get("_class_name", "a checkpoint without a class")
    kind = kind[-1] if isinstance(kind, list) and kind else str(kind)
    if "_class_name" not in index:
        return kind
    for part in ("transformer", "prior", "decoder"):
        if _has_part(index, part) and not _has_part(index, "unet"):
            network = _read_entry(index, part)[1]
            raise ModelNotFoundError(
                f"{kind}, whose network is a {network}, is not read; "
                "use a checkpoint of Stable Diffusion 1, 2 or XL"
            )
    for part, allowed in CLASSES.items():
        library, name = _read_entry(index, part)
        if name and (name not in allowed or library not in LIBRARIES):
            raise ModelNotFoundError(
                f"{kind}: its {part} is a {name} of {library}, which is not read "
                f"(a {allowed[0]} is); use a checkpoint of Stable Diffusion 1, 2 or XL"
            )
    if _has_part(index, "text_encoder_2") and not _has_part(index, "text_encoder"):
        raise ModelNotFoundError(
            f"{kind} without a text_encoder: a refiner, which only finishes the images of another "
            "checkpoint; use the base checkpoint"
        )
    return kind


def _check_parts(index: dict[str, Any]) -> str:
    """Check that all required parts are named, and return the class of the scheduler."""
    missing = [part for part in REQUIRED_PARTS if not _has_part(index, part)]
    if missing:
        raise ModelNotFoundError(
            f"its model_index.json names no {', '.join(missing)}; "
            "it is not in Stable Diffusion's format"
        )
    scheduler = str(_read_entry(index, "scheduler")[1])
    if scheduler not in SCHEDULER_CLASSES:
        raise ModelNotFoundError(
            f"its scheduler is a {scheduler}, which is not read; "
            "use a checkpoint with another scheduler"
        )
    return scheduler


def _choose_weights(folder: Path, parts: Sequence[str], variant: str | None) -> dict[str, Weights]:
    """Choose the files of each part's weights.

    Raises:
        VariantNotFoundError: a part has no weights of this variant.
        ModelNotFoundError: a part has no weights that can be read.
    """
    names: dict[str, list[str]] = {}
    weights: dict[str, Weights] = {}
    variants: dict[str, list[str]] = {}
    available: set[str] = set()
    missing = []
    for part in parts:
        names[part] = [file.name for file in (folder / part).glob("*")]
        variants[part] = find_variants(names[part], STEMS[part])
        available.update(variants[part])
        chosen = choose_weights(names[part], STEMS[part], variant)
        if chosen is None:
            missing.append(part)
        else:
            weights[part] = chosen
    if variant is not None and variant not in available and weights:
        advice = "leave the key out, for the plain ones"
        if available:
            advice = f"it has {', '.join(sorted(available))}"
        raise VariantNotFoundError(f"{folder} has no {variant} weights; {advice}")
    for part in missing:
        if variants[part]:
            raise VariantNotFoundError(
                f"the {part} of {folder} has only {', '.join(variants[part])} weights; "
                f"give {variants[part][0]}"
            )
    if missing:
        advice = "download the whole checkpoint again"
        if any(_has_pickled_weights(names[part]) for part in missing):
            advice = (
                "pickled weights are not loaded: convert them with "
                "`save_pretrained(..., safe_serialization=True)`"
            )
        raise ModelNotFoundError(
            f"{folder} has no safetensors weights for {', '.join(missing)}; {advice}"
        )
    return weights


def _has_pickled_weights(names: Sequence[str]) -> bool:
    return any(name.endswith((".bin", ".ckpt", ".pt", ".pth")) for name in names)


def _check_tokenizer(folder: Path) -> None:
    """Raise ModelNotFoundError if the files of a tokenizer are missing."""
    names = {file.name for file in folder.glob("*")}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        raise ModelNotFoundError(
            f"there is no {folder.name}/tokenizer.json, nor vocab.json and merges.txt, "
            f"in {folder.parent}; download the whole checkpoint again"
        )


def _check_quantization(configs: dict[str, dict[str, Any]]) -> None:
    """Raise ModelNotFoundError if a part is quantised."""
    for part, config in configs.items():
        if config.get("quantization_config"):
            raise ModelNotFoundError(
                f"its {part} is quantised, which is not read; "
                "use the checkpoint in float16 or float32"
            )


def _check_unet(checkpoint: Checkpoint) -> None:
    """Check that the UNet reads what the pipelines provide: latents, text, and SDXL's sizes."""
    unet = checkpoint.configs["unet"]
    kind = checkpoint.kind
    if unet.get("attention_type") == "gated-text-image":
        raise ModelNotFoundError(
            f"{kind} (GLIGEN text-image) also reads images of the objects; use GLIGEN's text-box"
        )
    for key in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "encoder_hid_dim"):
        if unet.get(key) is not None:
            raise ModelNotFoundError(
                f"{kind}: its unet reads more than latents and text ({key}: {unet[key]}); "
                "use a text-to-image checkpoint"
            )
    added = unet.get("addition_embed_type")
    reads_sizes = added is not None
    if added not in (None, "text_time") or reads_sizes != checkpoint.has_two_encoders:
        encoders = "two text encoders" if checkpoint.has_two_encoders else "one text encoder"
        raise ModelNotFoundError(
            f"{kind}: unet.addition_embed_type is {added}, which does not fit {encoders}; "
            "take all parts from one checkpoint"
        )
    if checkpoint.has_two_encoders:
        _check_added_embedding(checkpoint)
    latents = checkpoint.latent_channels
    out = int(unet.get("out_channels", 4))
    if out != latents:
        raise ModelNotFoundError(
            f"unet.out_channels is {out}, but its vae has {latents} latent channels; "
            "take all parts from one checkpoint"
        )
    text_width = 0
    for part, config in checkpoint.configs.items():
        if part.startswith("text_encoder"):
            text_width += int(config.get("hidden_size", 512))
    unet_width = unet.get("cross_attention_dim", 1280)
    if isinstance(unet_width, int) and unet_width != text_width:
        raise ModelNotFoundError(
            f"unet.cross_attention_dim is {unet_width}, but its text encoding has {text_width} "
            "numbers per token; take all parts from one checkpoint"
        )


def _check_added_embedding(checkpoint: Checkpoint) -> None:
    """Check the size of what SDXL's UNet reads besides the prompt's tokens; a refiner differs."""
    unet = checkpoint.configs["unet"]
    text = int(checkpoint.configs["text_encoder_2"].get("projection_dim", 512))
    width = int(unet.get("projection_class_embeddings_input_dim") or 0)
    time = int(unet.get("addition_time_embed_dim") or 0)
    if time and width != text + TIME_IDS * time:
        raise ModelNotFoundError(
            f"{checkpoint.kind}: its unet reads {width} numbers besides the tokens, "
            f"not {text} + {TIME_IDS} x {time}, as a refiner does; use the base checkpoint"
        )


def find_input_problem(
    checkpoint: Checkpoint, mask: bool = False, masked_image: bool = False
) -> str | None:
    """Return why a UNet's input channels do not fit; None if they do.

    Args:
        mask: whether a UNet that `synthgen train` has extended by the latents of a mask fits too.
        masked_image: whether a UNet for inpainting fits too, which reads a mask and the latents of
            a masked image.
    """
    channels = int(checkpoint.configs["unet"].get("in_channels", 4))
    latents = checkpoint.latent_channels
    reads_own_mask = channels == 2 * latents and checkpoint.kind in TRAINED_CLASSES
    inpaints = channels == 2 * latents + 1
    if channels == latents or (mask and reads_own_mask) or (masked_image and inpaints):
        return None
    if inpaints:
        network = "an inpainting UNet, which also reads a masked image"
    elif channels == 2 * latents:
        network = "a UNet that also reads an image (pix2pix, or a mask)"
    else:
        network = "a UNet that reads more than latents"
    return (
        f"unet.in_channels is {channels}, but its vae has {latents} latent channels: "
        f"{checkpoint.kind} has {network}; use the text-to-image checkpoint"
    )


def _check_shapes(part: str, kind: str, config: dict[str, Any], shapes: Shapes) -> None:
    """Check the names and shapes of a part's tensors against its config.json.

    Only the tensors whose shapes follow from the configuration without the network are checked.
    """
    expected: Shapes = {}
    if part == "unet":
        expected = _compute_unet_shapes(config)
    elif kind == "AutoencoderKL":
        expected = _compute_vae_shapes(config)
    elif part.startswith("text_encoder"):
        expected = _compute_text_shapes(config)
        shapes = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    for name, shape in expected.items():
        if name not in shapes:
            raise ModelNotFoundError(
                f"its {part} has no tensor {name}, which its config.json requires: "
                "of another checkpoint"
            )
        if shapes[name] != shape:
            raise ModelNotFoundError(
                f"{name} of its {part} has the shape {list(shapes[name])}, "
                f"but by its config.json {list(shape)}: of another checkpoint"
            )


def _repeat_per_block(value: Any, blocks: int) -> list[int]:
    """Return a number for each block, of a sequence or of one number for all."""
    if isinstance(value, Sequence):
        return [int(n) for n in value]
    return [int(value)] * blocks


def _compute_unet_shapes(config: dict[str, Any]) -> Shapes:
    """Return the shapes of the first convolution of each layer, and of the text projections."""
    channels = [int(n) for n in config["block_out_channels"]]
    blocks = len(channels)
    layers = _repeat_per_block(config.get("layers_per_block", 2), blocks)
    text_widths = _repeat_per_block(config.get("cross_attention_dim", 1280), blocks)
    in_channels = int(config.get("in_channels", 4))
    out_channels = int(config.get("out_channels", 4))
    in_kernel = int(config.get("conv_in_kernel", 3))
    out_kernel = int(config.get("conv_out_kernel", 3))
    text_key = "transformer_blocks.0.attn2.to_k.weight"
    shapes: Shapes = {
        "conv_in.weight": (channels[0], in_channels, in_kernel, in_kernel),
        "conv_out.weight": (out_channels, channels[0], out_kernel, out_kernel),
    }
    before = channels[0]
    down_blocks = zip(channels, layers, config["down_block_types"], strict=False)
    for i, (width, count, kind) in enumerate(down_blocks):
        for j in range(count if kind.endswith("DownBlock2D") else 0):
            block = f"down_blocks.{i}"
            shapes[f"{block}.resnets.{j}.conv1.weight"] = (width, before, 3, 3)
            if kind == "CrossAttnDownBlock2D":
                shapes[f"{block}.attentions.{j}.{text_key}"] = (width, text_widths[i])
            before = width
        before = width
    for i, (width, count) in enumerate(zip(channels[::-1], layers[::-1], strict=True)):
        kind = config["up_block_types"][i]
        for j in range(count + 1 if kind.endswith("UpBlock2D") else 0):
            block = f"up_blocks.{i}"
            shapes[f"{block}.resnets.{j}.conv2.weight"] = (width, width, 3, 3)
            if kind == "CrossAttnUpBlock2D":
                shapes[f"{block}.attentions.{j}.{text_key}"] = (width, text_widths[-1 - i])
    return shapes


def _compute_vae_shapes(config: dict[str, Any]) -> Shapes:
    """Return the shapes of some convolutions of an AutoencoderKL."""
    channels = [int(n) for n in config["block_out_channels"]]
    latents = int(config["latent_channels"])
    in_channels = int(config.get("in_channels", 3))
    out_channels = int(config.get("out_channels", 3))
    shapes: Shapes = {
        "encoder.conv_in.weight": (channels[0], in_channels, 3, 3),
        "encoder.conv_out.weight": (2 * latents, channels[-1], 3, 3),
        "decoder.conv_in.weight": (channels[-1], latents, 3, 3),
        "decoder.conv_out.weight": (out_channels, channels[0], 3, 3),
    }
    for i, width in enumerate(channels):
        up = len(channels) - 1 - i
        shapes[f"encoder.down_blocks.{i}.resnets.0.conv2.weight"] = (width, width, 3, 3)
        shapes[f"decoder.up_blocks.{up}.resnets.0.conv2.weight"] = (width, width, 3, 3)
    return shapes


def _compute_text_shapes(config: dict[str, Any]) -> Shapes:
    """Return the shapes of the embeddings, and of some tensors of each layer of a text encoder."""
    width = int(config.get("hidden_size", 512))
    vocabulary = int(config.get("vocab_size", 49408))
    positions = int(config.get("max_position_embeddings", 77))
    inner_width = int(config.get("intermediate_size", 2048))
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (vocabulary, width),
        "embeddings.position_embedding.weight": (positions, width),
        "final_layer_norm.weight": (width,),
    }
    for i in range(int(config.get("num_hidden_layers", 12))):
        shapes[f"encoder.layers.{i}.mlp.fc1.weight"] = (inner_width, width)
        shapes[f"encoder.layers.{i}.self_attn.q_proj.weight"] = (width, width)
    return shapes
