"""Files of weights: which files of a folder are loaded, and what their heads say.

A safetensors file begins with 8 bytes, the length of its head, and the head: JSON that names the tensors with their shapes
and places. Reading heads takes milliseconds, so a checkpoint is judged before anything is begun. Imports no torch.
"""

import json
import re
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
LONGEST_HEAD = 100_000_000  # bytes, the limit of safetensors itself


class BrokenWeightsError(ModelNotFoundError):
    """Weights that cannot be loaded; the message names the file and what is wrong with it."""


class VariantNotFoundError(ModelNotFoundError):
    """A checkpoint has no weights of the variant that the key `weights` asks for, or needs that key."""


@dataclass(frozen=True)
class Weights:
    """The files that a part of a checkpoint is loaded from.

    Attributes:
        variant: such as "fp16"; None: the files without one in their names.
        files: names in the part's folder; several are shards.
        index: name of the file that lists the shards; None if there are none.
    """

    variant: str | None
    files: tuple[str, ...]
    index: str | None = None


def choose_weights(names: Collection[str], stem: str, variant: str | None = None) -> Weights | None:
    """Choose the safetensors files that a part is loaded from; None if there are none.

    A variant that is asked for is taken where the part has it, else the plain files, as in diffusers. Where no variant is
    asked for and the part has fp16 weights alone, these are taken.

    Args:
        names: of all files in the part's folder.
        stem: how the names of its weights begin.
    """
    found: dict[str | None, list[tuple[str, bool]]] = {}
    for name in sorted(names):
        match = WEIGHTS.fullmatch(name) or OLD_SHARD.fullmatch(name)
        if match is not None and match["stem"] == stem:
            found.setdefault(match["variant"], []).append((name, match["shard"] is not None))
    for wanted in [variant, None] if variant else [None, "fp16"]:
        if wanted not in found:
            continue
        index = (
            f"{stem}.safetensors.index.{wanted}.json"
            if wanted
            else f"{stem}.safetensors.index.json"
        )
        whole = [name for name, is_shard in found[wanted] if not is_shard]
        if whole and (
            stem == "model" or index not in names
        ):  # transformers prefers the whole file, diffusers the shards
            return Weights(wanted, tuple(whole))
        return Weights(wanted, tuple(name for name, is_shard in found[wanted] if is_shard), index)
    return None


def find_variants(names: Iterable[str], stem: str) -> list[str]:
    """Find the variants of a part's safetensors weights, without the plain files."""
    matches = [WEIGHTS.fullmatch(name) or OLD_SHARD.fullmatch(name) for name in names]
    return sorted(
        {m["variant"] for m in matches if m is not None and m["stem"] == stem and m["variant"]}
    )


def select_files(
    files: Iterable[str], parts: Iterable[str], variant: str | None = None
) -> list[str]:
    """Select the files of a repository that its checkpoint is loaded from: settings, words, and the weights of each part.

    Args:
        files: paths of all files of the repository.
        parts: the folders that are read.
    """
    listed = sorted(files)
    selected = []
    for part in parts:
        names = [file.removeprefix(f"{part}/") for file in listed if file.startswith(f"{part}/")]
        chosen = choose_weights(names, STEMS[part], variant) if part in STEMS else None
        weights = chosen.files if chosen else ()
        selected += [
            f"{part}/{name}"
            for name in names
            if name.endswith((".json", ".txt")) or name in weights
        ]
    return [file for file in selected if file.count("/") == 1]


def read_json(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        ModelNotFoundError: it is not there or holds something else.
    """
    shown = f"{file.parent.name}/{file.name}"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"there is no {shown} in {file.parent.parent}; download the whole checkpoint again"
        ) from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelNotFoundError(
            f"{shown} cannot be read as JSON ({reason}); download it again"
        ) from None
    if not isinstance(found, dict):
        raise ModelNotFoundError(f"{shown} holds no mapping; download it again")
    return found


def read_shapes(folder: Path, weights: Weights) -> Shapes:
    """The shapes of a part's tensors, from the heads of its files.

    Raises:
        BrokenWeightsError: a file is not there, cut short, a pointer of Git LFS, or no safetensors file.
    """
    if weights.index is None:
        return read_head(folder / weights.files[0])[0]
    names = list(read_json(folder / weights.index).get("weight_map", {}).items())
    missing = sorted({file for _, file in names if not (folder / file).is_file()})
    if missing or not names:
        shown = f"{folder.name}/{missing[0]}" if missing else "any"
        raise BrokenWeightsError(
            f"there is no {shown}, a shard that {folder.name}/{weights.index} lists; download it"
        )
    heads = {file: read_head(folder / file)[0] for file in sorted({file for _, file in names})}
    for tensor, file in names:
        if tensor not in heads[file]:
            shown = f"{folder.name}/{file}"
            raise BrokenWeightsError(
                f"{shown} has no tensor {tensor}, which {weights.index} lists; download it again"
            )
    return {tensor: heads[file][tensor] for tensor, file in names}


def read_head(file: Path) -> tuple[Shapes, dict[str, str]]:
    """The shapes of a safetensors file's tensors, and its metadata.

    Raises:
        BrokenWeightsError: it is cut short, a pointer of Git LFS, or no safetensors file.
    """
    shown = f"{file.parent.name}/{file.name}"
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            if LFS.startswith(start) and start:
                raise BrokenWeightsError(
                    f"{shown} is a pointer of Git LFS, not weights; run `git lfs pull` in its repository"
                )
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if length > LONGEST_HEAD or (length <= size - 8 and length < 2):
                raise BrokenWeightsError(f"{shown} is no safetensors file; download it again")
            if length > size - 8 or len(start) < 8:
                raise BrokenWeightsError(
                    f"{shown} is cut short ({size:,} bytes); download it again"
                )
            head = json.loads(stream.read(length))
            metadata = head.pop("__metadata__", {})
            shapes = {
                str(name): tuple(int(n) for n in entry["shape"]) for name, entry in head.items()
            }
            end = (
                8
                + length
                + max((int(entry["data_offsets"][1]) for entry in head.values()), default=0)
            )
    except OSError as error:
        raise BrokenWeightsError(f"{shown} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        raise BrokenWeightsError(
            f"{shown} is no safetensors file: its head cannot be read; download it again"
        ) from None
    if size != end:
        reason = (
            f"is cut short: {size:,} of {end:,} bytes"
            if size < end
            else f"has {size - end:,} bytes too many"
        )
        raise BrokenWeightsError(f"{shown} {reason}; download it again")
    return shapes, metadata
