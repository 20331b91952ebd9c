"""Checkpoints in an object store, of which each machine keeps a copy."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock

from synthgen.cache import find_cache_folder
from synthgen.errors import InputError, StoreFailedError, StoreRefusedError
from synthgen.pipelines.base import ModelNotFoundError
from synthgen.pipelines.diffusion.weights import select_files
from synthgen.storage.location import check_url


@lru_cache
def copy_checkpoint(
    url: str, parts: tuple[str, ...], others: tuple[str, ...], variant: str | None
) -> Path:
    """Return the local copy of a checkpoint's folder, which is copied if it has changed.

    Each process looks for changes once.

    Args:
        parts: names of the folders that are read.
        others: names of files beside them that are read, if there are any.
        variant: variant of the weights.

    Raises:
        ModelNotFoundError: there is no checkpoint, or the store cannot be read.
    """
    versions = list_versions(url, ("", *parts))
    if "model_index.json" not in versions:
        raise ModelNotFoundError(f"{url!r}: there is no model_index.json")
    names = [name for name in others if name in versions]
    names += select_files(versions, parts, variant)
    return _copy(url, {name: versions[name] for name in names})


@lru_cache
def copy_file(url: str) -> Path:
    """Return the local copy of one file, which is copied if it has changed.

    Each process looks for changes once.

    Raises:
        ModelNotFoundError: there is no such file, or the store cannot be read.
    """
    parts = urlsplit(url)
    parent, _, name = parts.path.rpartition("/")
    folder = urlunsplit(parts._replace(path=parent))
    versions = list_versions(folder, [""])
    if name not in versions:
        raise ModelNotFoundError(f"{url!r}: there is no such file")
    return _copy(folder, {name: versions[name]}) / name


def list_versions(url: str, folders: Sequence[str]) -> dict[str, str]:
    """Return the files in some folders of an object store, with a text that changes with the file.

    Args:
        folders: names below the URL; "" is the URL's own folder.
    """
    from synthgen.storage.object_store import ObjectStore  # pyarrow is heavy

    versions = {}
    try:
        check_url(url)
        store = ObjectStore.from_url(url)
        for folder in folders:
            for name, size, time in store.list_files(folder):
                path = f"{folder}/{name}" if folder else name
                versions[path] = f"{size} bytes, {time}"
    except (InputError, StoreFailedError, StoreRefusedError) as error:
        raise ModelNotFoundError(f"{url!r} cannot be read: {error}") from None
    return versions


def _copy(url: str, versions: Mapping[str, str]) -> Path:
    """Copy files of a folder to this machine, unless it has these versions of them."""
    from synthgen.storage.object_store import ObjectStore

    identity = hashlib.sha256(f"{url}\0{sorted(versions.items())}".encode()).hexdigest()
    folder = find_cache_folder("checkpoints") / identity
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        missing = [name for name in versions if not (folder / name).is_file()]
        if missing:
            store = ObjectStore.from_url(url)
        for name in missing:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_name(f".{path.name}")
            try:
                with temporary.open("wb") as file:
                    store.download(name, file)
            except (StoreFailedError, StoreRefusedError) as error:
                raise ModelNotFoundError(f"{url}/{name} cannot be copied: {error}") from None
            os.replace(temporary, path)
    return folder
