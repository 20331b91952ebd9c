"""Where files lie: the store of a folder or URL."""

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from synthgen.errors import InputError
from synthgen.storage.base import Store
from synthgen.storage.local import LocalStore

SCHEMES = ("s3", "gs", "gcs", "hdfs")
QUERY = (
    "region",
    "scheme",
    "endpoint_override",
    "user",
    "replication",
)  # what a URL may say; never keys


def open_store(where: str | Path) -> Store:
    """Return the store of a folder or URL.

    Raises:
        InputError: the URL is of no store that is known, or has keys in it.
        StoreRefusedError, StoreFailedError: the store cannot be reached.
    """
    if isinstance(where, Path) or not is_url(where):
        return LocalStore(Path(where).absolute())
    check_url(where)
    from synthgen.storage.object_store import ObjectStore  # pyarrow is heavy

    return ObjectStore.from_url(where)


def is_url(text: str) -> bool:
    return "://" in text


def check_url(url: str) -> None:
    """Raise InputError if a URL is of no store that is known, names no bucket, or has keys in it (it is written down)."""
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.scheme not in SCHEMES:
        raise InputError(
            f"{shown!r}: give a folder, or a URL that begins with {', '.join(f'{s}://' for s in SCHEMES)}"
        )
    if parts.password is not None or parts.username not in (
        (None, "anonymous") if parts.scheme in ("gs", "gcs") else (None,)
    ):
        raise InputError(
            f"{shown!r}: no user or key in a URL; credentials come from the environment or the machine's profile"
        )
    unknown = [key for key, _ in parse_qsl(parts.query, keep_blank_values=True) if key not in QUERY]
    if unknown:
        raise InputError(
            f"{shown!r}: {unknown[0]!r} cannot be given in a URL; only {', '.join(QUERY)} can, and never a key"
        )
    if not parts.netloc or re.search(
        r"(^|/)\.{1,2}(/|$)|//|#", parts.path + ("#" if parts.fragment else "")
    ):
        raise InputError(f"{shown!r}: give {parts.scheme}://BUCKET/FOLDER, without . and ..")
