"""The samples of a dataset as whole shards give them: row and picture together, and which split each is in."""

import hashlib
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from PIL import Image

from synthgen.dataset.marker import MARKER, TAR, Marker, scan, shard_file, shard_name, shard_sizes
from synthgen.dataset.sample import IMAGE_FORMATS, Sample, parse_sample
from synthgen.dataset.shard import DamagedShardError, read_members, read_rows, shard_members
from synthgen.errors import InputError, first_line
from synthgen.images import DAMAGED
from synthgen.storage.base import Store

TRAIN, VAL = "train", "val"
SPLITS = (TRAIN, VAL)


def split_of(key: str, val: float) -> str:
    """The split of a sample: by the hash of its key alone, so that it never changes when a dataset grows.

    Args:
        val: the share of the samples that are in "val", 0 to 1; the others are in "train".
    """
    return VAL if int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) < val * 2**64 else TRAIN


def sound_shards(store: Store) -> dict[int, Marker]:
    """The marker of each shard, by number, ascending.

    Raises:
        DamagedShardError: a shard was committed, but is gone or of another size now.
        InputError: there is none.
    """
    found = shard_sizes(store)
    sound = dict(scan(store, found))
    for number in (n for n, files in found.items() if MARKER in files and n not in sound):
        raise DamagedShardError(
            f"{store}/shards/{shard_name(number)}: differs from its marker; see `synthgen check {store}`"
        )
    if not sound:
        raise InputError(
            f"{store}: no dataset here: it has no finished shard (shards/000000.tar with its marker)"
        )
    return sound


def read_samples(store: Store, number: int) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Row and encoded picture of each sample of a shard, in order; one picture is in memory at a time.

    Raises:
        DamagedShardError: the shard is not what its table says.
    """
    tar, count = store.path(shard_file(number, TAR)), 0
    rows = {f"{row['key']}.{row['image_format']}": row for row in read_rows(store, number)}
    for name, data in shard_members(store, number):
        row = rows.get(name)
        if row is not None:
            if hashlib.sha256(data).hexdigest() != row["image_sha256"]:
                raise DamagedShardError(
                    f"{tar}: {name} differs from its row (sha256); see `synthgen check {store}`"
                )
            count += 1
            yield row, data
    if count != len(rows):
        raise DamagedShardError(
            f"{tar}: holds {count} of {len(rows)} pictures; see `synthgen check {store}`"
        )


def parsed_samples(tar: BinaryIO, place: str) -> Iterator[Sample]:
    """The samples of a shard's tar, in order.

    Args:
        place: named in errors.

    Raises:
        DamagedShardError: its members are not pairs of a picture and its json.
    """
    members = read_members(tar, place)
    for name, picture in members:
        (key, _, kind), (record_name, record) = name.partition("."), next(members, ("nothing", b""))
        if kind not in IMAGE_FORMATS or record_name != f"{key}.json":
            raise DamagedShardError(
                f"{place}: {name!r} and {record_name!r} are not a picture and its json"
            )
        try:
            sample = parse_sample(record, picture, kind)
        except ValueError as error:
            raise DamagedShardError(f"{place}: {key!r}: {first_line(error)}") from None
        if sample.key != key:
            raise DamagedShardError(f"{place}: {key!r}: its index is {sample.index}")
        yield sample


def decoded(data: bytes, place: str) -> Image.Image:
    """A picture of a shard, decoded whole, as RGB.

    Raises:
        DamagedShardError: it does not decode.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except DAMAGED as error:
        raise DamagedShardError(f"{place}: picture does not decode: {first_line(error)}") from None
