"""Find checkpoints and LoRAs by name.

They are in the package, in a folder, in one file, on the Hugging Face Hub, or in an object store.
This module finds and hashes files. It does not import torch, except to convert a checkpoint in one
file.
"""

import hashlib
from functools import lru_cache
from glob import escape
from pathlib import Path
from urllib.parse import urlsplit

from synthgen.file_hashes import hash_file
from synthgen.pipelines.base import ModelNotFoundError
from synthgen.pipelines.diffusion.checkpoint import Checkpoint, read_checkpoint
from synthgen.pipelines.diffusion.lora import ADAPTER, reads_adapter_config
from synthgen.pipelines.diffusion.mirror import copy_checkpoint, copy_file
from synthgen.pipelines.diffusion.single_file import (
    Family,
    convert_single_file,
    find_family,
    hash_single_file,
)
from synthgen.pipelines.diffusion.sizes import SIZES_FILE
from synthgen.pipelines.diffusion.weights import VariantNotFoundError, read_head, select_files
from synthgen.storage.location import is_url

EMBEDDED = Path(__file__).parents[2] / "weights"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
CONCEPTS = "concepts.json"  # lists the classes of a checkpoint's identifiers, in its folder
INDEX = "model_index.json"
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
CONFIGURATIONS = ("*.json", "*/*.json", "*/*.txt")


class RevisionNotFoundError(ModelNotFoundError):
    """The key `revision` names nothing."""


def find_model(name: str) -> Path:
    """Return the local folder of a checkpoint, which is downloaded from the Hub if necessary.

    Raises:
        ModelNotFoundError: the checkpoint cannot be found or loaded.
    """
    return find_checkpoint(name).folder


def find_checkpoint(
    name: str,
    variant: str | None = None,
    revision: str | None = None,
    config: str | None = None,
) -> Checkpoint:
    """Return a checkpoint by name, with its configurations and headers.

    It is downloaded or converted if necessary.

    Args:
        name: an embedded checkpoint, a folder, a .safetensors file, a Hugging Face id
            (`owner/name`), a file of one (`owner/name/FILE`), or the URL of a folder or file.
        variant: variant of the weights, such as "fp16".
        revision: branch, tag or commit on the Hub; None: the default branch.
        config: folder or Hugging Face id with the configurations of a checkpoint in one file;
            None: those of its family.

    Raises:
        ModelNotFoundError: the checkpoint cannot be found or loaded.
        VariantNotFoundError: it has no weights of this variant.
        RevisionNotFoundError: it has no such revision.
    """
    file = find_single_file(name, revision)
    folder = None if file else _find_folder(name, variant, revision)
    try:
        if folder is None:
            assert file is not None
            family = find_family(file)
            folder = convert_single_file(file, family, _find_config(family, config))
        return read_checkpoint(folder, variant)
    except VariantNotFoundError:
        raise
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"model {name!r}: {error}") from None


def find_single_file(name: str, revision: str | None = None) -> Path | None:
    """Return the local path of a checkpoint or LoRA in one file; None for a folder or a Hub id.

    Raises:
        ModelNotFoundError: the file cannot be fetched.
    """
    path = Path(name)
    if path.is_file():
        return path
    if is_url(name):
        return copy_file(name) if urlsplit(name).path.endswith(SINGLE_FILES) else None
    if not name.endswith(SINGLE_FILES) or path.is_dir():
        return None
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if not file or owner in ("", ".", "..", "~"):
        return None
    return download_snapshot(f"{owner}/{repository}", [escape(file)], [], revision) / file


def hash_checkpoint(
    name: str, variant: str | None, revision: str | None, config: str | None
) -> dict[str, str]:
    """Return the hashes of the files on which a checkpoint's images depend, by key."""
    file = find_single_file(name, revision)
    if file is not None:
        return {"model_sha256": hash_single_file(file, _find_config(find_family(file), config))}
    folder = _find_folder(name, variant, revision)
    hashes = {"model_sha256": hash_folder(folder)}
    index = folder / INDEX  # says how the parts work together
    if index.is_file():
        hashes["model_index_sha256"] = hashlib.sha256(index.read_bytes()).hexdigest()
    return hashes


def _find_config(family: Family, name: str | None) -> Path:
    """Return a folder with the configurations of a family, or those that the user names."""
    if name is not None and (Path(name) / INDEX).is_file():
        return Path(name)
    if name is not None and (Path(name).exists() or not is_hub_id(name)):
        raise ModelNotFoundError(
            f"`pipeline.config`: {name!r} is no folder with a {INDEX}, and no Hugging Face id"
        )
    try:
        return _download_configurations(name or family.model)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"is a {family.name} checkpoint in one file, and its configurations are missing: "
            f"{error}; or give a folder with them as `pipeline.config`"
        ) from None


@lru_cache
def _download_configurations(name: str) -> Path:
    """Download the configurations of a checkpoint without its weights, once per process."""
    return download_snapshot(name, list(CONFIGURATIONS), [])


def _find_folder(name: str, variant: str | None, revision: str | None) -> Path:
    """Return the local folder of a checkpoint that is not in one file."""
    for folder in (EMBEDDED / name, Path(name)):
        if (folder / INDEX).is_file():
            return folder
    if is_url(name):
        return copy_checkpoint(name, PARTS, (INDEX, SIZES_FILE, CONCEPTS), variant)
    if name.endswith(SINGLE_FILES) and not Path(name).is_dir():
        raise ModelNotFoundError(f"model {name!r}: there is no such file")
    if Path(name).is_dir() or not is_hub_id(name):
        embedded = sorted(file.parent.name for file in EMBEDDED.glob(f"*/{INDEX}"))
        raise ModelNotFoundError(
            f"model {name!r}: no folder of that name holds a {INDEX}, "
            f"and it is no Hugging Face id (owner/name); embedded: {', '.join(embedded)}"
        )
    return _download_checkpoint(name, variant, revision)


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a Hugging Face id, owner/name."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def is_on_hub(name: str) -> bool:
    """Return whether a checkpoint comes from the Hugging Face Hub, where it has revisions."""
    if is_url(name) or Path(name).exists() or name.startswith((".", "/", "~")):
        return False
    return is_hub_id(name) or (name.count("/") > 1 and name.endswith(SINGLE_FILES))


def find_lora(name: str) -> Path:
    """Return the file of a LoRA, which is downloaded if necessary.

    Args:
        name: a .safetensors file, its folder, a Hugging Face id (`owner/name`), a file of one
            (`owner/name/FILE`), or the URL of a file.

    Raises:
        ModelNotFoundError: it cannot be found, or there is not exactly one safetensors file.
    """
    path = find_single_file(name) or Path(name)
    if not path.exists() and is_hub_id(name):
        path = download_snapshot(name, ["*.safetensors", ADAPTER], [])
    if path.is_file() and path.suffix == ".safetensors":
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    reason = "no such .safetensors file, and it is no Hugging Face id"
    advice = "give one file, or a folder or Hub id that holds one"
    if path.is_dir():
        reason = f"{len(files)} .safetensors files"
    if files:
        advice = f"give one of them, such as {name}/{files[0].name}"
    raise ModelNotFoundError(f"LoRA {name!r}: {reason}; {advice}")


def hash_lora(file: Path) -> str:
    """Return the sha256 of a LoRA's file, and of the configuration beside it if it is read."""
    digest = hashlib.sha256(file.read_bytes())
    if reads_adapter_config(file, read_head(file)[0]):
        digest.update((file.parent / ADAPTER).read_bytes())
    return digest.hexdigest()


@lru_cache
def _download_checkpoint(name: str, variant: str | None, revision: str | None) -> Path:
    """Download the files from which a checkpoint is loaded, once per process."""
    weights = select_files(_list_files(name, revision), PARTS, variant)
    files = [INDEX, SIZES_FILE, CONCEPTS, *weights]
    return download_snapshot(name, [escape(file) for file in files], [], revision)


def _list_files(name: str, revision: str | None) -> list[str]:
    """Return the paths of a repository's files on the Hub, or in the local cache if it fails."""
    from huggingface_hub import HfApi

    try:
        return list(HfApi().list_repo_files(name, revision=revision))
    except Exception:
        # Each version of the client has its own network errors; `download_snapshot` explains what
        # is wrong.
        folder = download_snapshot(name, [], [], revision)
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file.relative_to(folder).as_posix() for file in files]


def download_snapshot(
    name: str, wanted: list[str], skipped: list[str], revision: str | None = None
) -> Path:
    """Return the local folder of a Hub repository's files, which are downloaded if necessary.

    Args:
        wanted: patterns of the files that are downloaded.
        skipped: patterns of the files that are not.
        revision: branch, tag or commit; None: the default branch.

    Raises:
        ModelNotFoundError: the files are not in the local cache and cannot be downloaded.
        RevisionNotFoundError: the repository has no such revision.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )
    from huggingface_hub.errors import RevisionNotFoundError as UnknownRevisionError

    shown = repr(name) if revision is None else f"{name!r} at {revision!r}"
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=wanted, ignore_patterns=skipped
            )
        )
    except UnknownRevisionError:
        raise RevisionNotFoundError(
            f"{name} has no branch, tag or commit {revision!r} on the Hugging Face Hub"
        ) from None
    except GatedRepoError:
        raise ModelNotFoundError(
            f"model {shown} is gated: accept its licence on https://huggingface.co/{name}, and set "
            "HF_TOKEN to a token of that account"
        ) from None
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).splitlines()[0][:160]
        raise ModelNotFoundError(
            f"model {shown}: not a local folder, not in the local cache, and it cannot be "
            f"downloaded from the Hugging Face Hub ({type(error).__name__}: {reason}); "
            "check the name and the network, or give a local folder"
        ) from None


def hash_folder(folder: Path) -> str:
    """Return the sha256 over names and bytes of all files from which a checkpoint is loaded."""
    digest = hashlib.sha256()
    for part in PARTS:
        for file in sorted((folder / part).glob("*")):
            if file.suffix in (".json", ".txt", ".safetensors"):
                digest.update(_hash_file(file, f"{part}/{file.name}"))
    return digest.hexdigest()


def hash_files(folder: Path, patterns: list[str]) -> str:
    """Return the sha256 over names and bytes of the files of a folder that match a pattern."""
    digest = hashlib.sha256()
    files: list[Path] = []
    for pattern in patterns:
        files += folder.glob(pattern)
    for file in sorted(files):
        digest.update(_hash_file(file, file.name))
    return digest.hexdigest()


def _hash_file(file: Path, name: str) -> bytes:
    """Return the name and the sha256 of a file, each followed by a zero byte."""
    return f"{name}\0{hash_file(file)}\0".encode()
