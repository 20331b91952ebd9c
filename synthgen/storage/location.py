"""The store of a folder or URL."""

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from synthgen.errors import InputError
from synthgen.storage.base import Store
from synthgen.storage.local import LocalStore

SCHEMES = ("s3", "gs", "gcs", "hdfs")
QUERY_KEYS = ("region", "scheme", "endpoint_override", "user", "replication")
"""What a URL may set; credentials are not among it."""
BAD_PATH = re.compile(r"(^|/)\.{1,2}(/|$)|//")


def open_store(where: str | Path) -> Store:
    """Return the store of a folder or URL.

    Raises:
        InputError: the URL is of no known store, or contains credentials.
        StoreRefusedError, StoreFailedError: the store cannot be reached.

    Examples:
        >>> store = open_store("out/pasted")
        >>> store.exists("dataset.json")
        True
    """
    if isinstance(where, Path) or not is_url(where):
        return LocalStore(Path(where).absolute())
    check_url(where)
    from synthgen.storage.object_store import ObjectStore  # pyarrow is heavy

    return ObjectStore.from_url(where)


def is_url(text: str) -> bool:
    """Return whether a text is a URL and not the path of a folder."""
    return "://" in text


def check_url(url: str) -> None:
    """Raise InputError if a URL is of no known store, names no bucket, or contains credentials.

    URLs are written to files, so they must not contain credentials.
    """
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.scheme not in SCHEMES:
        prefixes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise InputError(f"{shown!r}: give a folder, or a URL that begins with {prefixes}")
    allowed_users = [None, "anonymous"] if parts.scheme in ("gs", "gcs") else [None]
    if parts.password is not None or parts.username not in allowed_users:
        raise InputError(
            f"{shown!r}: no user or key in a URL; credentials come from the environment or the "
            "machine's profile"
        )
    for key, _ in parse_qsl(parts.query, keep_blank_values=True):
        if key not in QUERY_KEYS:
            raise InputError(
                f"{shown!r}: {key!r} cannot be given in a URL; only {', '.join(QUERY_KEYS)} can, "
                "and never a key"
            )
    if not parts.netloc or BAD_PATH.search(parts.path) or parts.fragment:
        raise InputError(f"{shown!r}: give {parts.scheme}://BUCKET/FOLDER, without . and ..")
