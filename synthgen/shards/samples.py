"""The samples of a dataset as whole shards give them: row and picture together, and which split each is in."""

import hashlib
import tarfile
from collections.abc import Iterator
from typing import Any

from synthgen.errors import InputError
from synthgen.shards.shard import MARKER, TAR, Marker, read_rows, scan, shard_file, shard_members, shard_name, shard_sizes
from synthgen.shards.store import Out, open_store

TRAIN, VAL = "train", "val"
SPLITS = (TRAIN, VAL)


class DamagedShardError(InputError):
    """A shard is not what was committed; the message names it."""


def split_of(key: str, val: float) -> str:
    """The split of a sample: by the hash of its key alone, so that it never changes when a dataset grows.

    Args:
        val: the share of the samples that are in "val", 0 to 1; the others are in "train".
    """
    return VAL if int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) < val * 2**64 else TRAIN


def sound_shards(out: Out) -> dict[int, Marker]:
    """The marker of each shard, by number, ascending.

    Raises:
        DamagedShardError: a shard was committed, but is gone or of another size now.
        InputError: there is none.
    """
    found = shard_sizes(out)
    sound = dict(scan(out, found))
    for number in (n for n, files in found.items() if MARKER in files and n not in sound):
        raise DamagedShardError(f"{out}/shards/{shard_name(number)}: differs from its marker; see `synthgen check {out}`")
    if not sound:
        raise InputError(f"{out}: no dataset here: it has no finished shard (shards/000000.tar with its marker)")
    return sound


def read_samples(out: Out, number: int) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Row and encoded picture of each sample of a shard, in order; one picture is in memory at a time.

    Raises:
        DamagedShardError: the shard is not what its table says.
    """
    tar, count = open_store(out).path(shard_file(number, TAR)), 0
    try:
        rows = {f"{row['key']}.{row['image_format']}": row for row in read_rows(out, number)}
        for name, data in shard_members(out, number):
            row = rows.get(name)
            if row is not None:
                if hashlib.sha256(data).hexdigest() != row["image_sha256"]:
                    raise DamagedShardError(f"{tar}: {name} differs from its row (sha256); see `synthgen check {out}`")
                count += 1
                yield row, data
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DamagedShardError(f"{tar}: cannot be read: {error}; see `synthgen check {out}`") from error
    if count != len(rows):
        raise DamagedShardError(f"{tar}: holds {count} of {len(rows)} pictures; see `synthgen check {out}`")
