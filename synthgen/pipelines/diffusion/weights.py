"""Files of weights: which files of a folder are loaded, and what their headers contain.

A safetensors file begins with 8 bytes, the length of its header, and the header: JSON with the
names, shapes and offsets of the tensors. Headers are read in milliseconds, so a checkpoint is
checked before a job starts. This module does not import torch.
"""

import json
import re
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from synthgen.pipelines.base import ModelNotFoundError

Shapes = dict[str, tuple[int, ...]]
"""The shape of each tensor, by its name."""

STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
WEIGHTS = re.compile(
    r"(?P<stem>\w+?)(\.(?P<variant>\w+))?(-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?\.safetensors"
)
OLD_SHARD = re.compile(
    r"(?P<stem>\w+?)-(?P<shard>\d{5})-of-(?P<shards>\d{5})(\.(?P<variant>\w+))?\.safetensors"
)
LFS = b"version https://git-lfs"
LONGEST_HEADER = 100_000_000  # bytes, the limit of safetensors itself


class BrokenWeightsError(ModelNotFoundError):
    """Weights cannot be loaded; the message names the file and the problem."""


class VariantNotFoundError(ModelNotFoundError):
    """A checkpoint lacks the weights that the key `weights` names, or cannot be read without it."""


@dataclass(frozen=True)
class Weights:
    """The files from which a part of a checkpoint is loaded.

    Attributes:
        variant: such as "fp16"; None: the files without a variant in their names.
        files: names in the part's folder; several files are shards.
        index: name of the file that lists the shards; None if there are none.
    """

    variant: str | None
    files: tuple[str, ...]
    index: str | None = None


def choose_weights(names: Collection[str], stem: str, variant: str | None = None) -> Weights | None:
    """Choose the safetensors files from which a part is loaded; None if there are none.

    A requested variant is used if the part has it, otherwise the plain files, as in diffusers.
    Without a requested variant, fp16 weights are used if the part has no plain files.

    Args:
        names: the names of all files in the part's folder.
        stem: how the names of its weights begin.
    """
    whole: dict[str | None, list[str]] = {}
    shards: dict[str | None, list[str]] = {}
    for name in sorted(names):
        match = _match_weights(name, stem)
        if match is not None:
            files = whole if match["shard"] is None else shards
            files.setdefault(match["variant"], []).append(name)
    for chosen in [variant, None] if variant else [None, "fp16"]:
        index = f"{stem}.safetensors.index.json"
        if chosen:
            index = f"{stem}.safetensors.index.{chosen}.json"
        # Where a part has both, transformers loads the whole file, diffusers the shards.
        prefers_whole = stem == "model" or index not in names
        if chosen in whole and prefers_whole:
            return Weights(chosen, tuple(whole[chosen]))
        if chosen in whole or chosen in shards:
            return Weights(chosen, tuple(shards.get(chosen, [])), index)
    return None


def find_variants(names: Iterable[str], stem: str) -> list[str]:
    """Return the variants of a part's safetensors weights, sorted; the plain files are none."""
    variants = set()
    for name in names:
        match = _match_weights(name, stem)
        if match is not None and match["variant"]:
            variants.add(match["variant"])
    return sorted(variants)


def _match_weights(name: str, stem: str) -> re.Match[str] | None:
    """Return the variant and shard in the name of a file of weights; None for another file."""
    match = WEIGHTS.fullmatch(name) or OLD_SHARD.fullmatch(name)
    if match is None or match["stem"] != stem:
        return None
    return match


def select_files(
    files: Iterable[str], parts: Iterable[str], variant: str | None = None
) -> list[str]:
    """Select the files of a repository from which its checkpoint is loaded.

    These are the configurations, the vocabularies, and the weights of each part.

    Args:
        files: paths of all files of the repository.
        parts: the folders that are read.
        variant: the variant of the weights, the same as in `choose_weights`.
    """
    listed = sorted(files)
    selected = []
    for part in parts:
        names = [file.removeprefix(f"{part}/") for file in listed if file.startswith(f"{part}/")]
        chosen = choose_weights(names, STEMS[part], variant) if part in STEMS else None
        weights = chosen.files if chosen else ()
        for name in names:
            is_read = name.endswith((".json", ".txt")) or name in weights
            if is_read and "/" not in name:
                selected.append(f"{part}/{name}")
    return selected


def read_json(file: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file.

    Raises:
        ModelNotFoundError: the file is missing or contains something else.
    """
    shown = f"{file.parent.name}/{file.name}"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"there is no {shown} in {file.parent.parent}; download the whole checkpoint again"
        ) from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelNotFoundError(
            f"{shown} cannot be read as JSON ({reason}); download it again"
        ) from None
    if not isinstance(content, dict):
        raise ModelNotFoundError(f"{shown} holds no mapping; download it again")
    return content


def read_shapes(folder: Path, weights: Weights) -> Shapes:
    """Return the shapes of a part's tensors, from the headers of its files.

    Raises:
        BrokenWeightsError: a file is missing, truncated, a pointer of Git LFS, or not safetensors.
    """
    if weights.index is None:
        return read_head(folder / weights.files[0])[0]
    file_of_tensor: dict[str, str] = read_json(folder / weights.index).get("weight_map", {})
    files = sorted(set(file_of_tensor.values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing or not files:
        shown = f"{folder.name}/{missing[0]}" if missing else "any"
        raise BrokenWeightsError(
            f"there is no {shown}, a shard that {folder.name}/{weights.index} lists; download it"
        )
    shapes_of_file = {file: read_head(folder / file)[0] for file in files}
    shapes = {}
    for tensor, file in file_of_tensor.items():
        if tensor not in shapes_of_file[file]:
            raise BrokenWeightsError(
                f"{folder.name}/{file} has no tensor {tensor}, which {weights.index} lists; "
                "download it again"
            )
        shapes[tensor] = shapes_of_file[file][tensor]
    return shapes


def read_head(file: Path) -> tuple[Shapes, dict[str, str]]:
    """Return the shapes of a safetensors file's tensors, and its metadata.

    Raises:
        BrokenWeightsError: the file is truncated, a pointer of Git LFS, or not safetensors.
    """
    shown = f"{file.parent.name}/{file.name}"
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = _read_header_length(stream, size, shown)
            header = json.loads(stream.read(length))
        metadata = header.pop("__metadata__", {})
        shapes = {}
        data_end = 0
        for name, entry in header.items():
            shapes[str(name)] = tuple(int(n) for n in entry["shape"])
            data_end = max(data_end, int(entry["data_offsets"][1]))
    except OSError as error:
        raise BrokenWeightsError(f"{shown} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        raise BrokenWeightsError(
            f"{shown} is no safetensors file: its header cannot be read; download it again"
        ) from None
    expected = 8 + length + data_end
    if size < expected:
        raise BrokenWeightsError(
            f"{shown} is cut short: {size:,} of {expected:,} bytes; download it again"
        )
    if size > expected:
        raise BrokenWeightsError(
            f"{shown} has {size - expected:,} bytes too many; download it again"
        )
    return shapes, metadata


def _read_header_length(stream: BinaryIO, size: int, shown: str) -> int:
    """Read the length of the header of a safetensors file of `size` bytes.

    Args:
        shown: the name of the file in messages.

    Raises:
        BrokenWeightsError: the length is impossible, or the file is a pointer of Git LFS.
    """
    start = stream.read(8)
    if start and LFS.startswith(start):
        raise BrokenWeightsError(
            f"{shown} is a pointer of Git LFS, not weights; run `git lfs pull` in its repository"
        )
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if length > LONGEST_HEADER or (length <= size - 8 and length < 2):
        raise BrokenWeightsError(f"{shown} is no safetensors file; download it again")
    if length > size - 8 or len(start) < 8:
        raise BrokenWeightsError(f"{shown} is cut short ({size:,} bytes); download it again")
    return int(length)
