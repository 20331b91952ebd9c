"""The samples of a dataset, read shard by shard: rows with their images, and their splits."""

import hashlib
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from PIL import Image

from synthgen.dataset.marker import (
    MARKER,
    TAR,
    Marker,
    format_shard_file,
    format_shard_name,
    list_shard_files,
    scan_markers,
)
from synthgen.dataset.sample import IMAGE_FORMATS, Sample, format_image_name, parse_sample
from synthgen.dataset.shard import DamagedShardError, list_shard_members, read_members, read_rows
from synthgen.errors import InputError, get_first_line
from synthgen.images import DECODE_ERRORS
from synthgen.storage.base import Store

TRAIN = "train"
VAL = "val"
SPLITS = (TRAIN, VAL)


def split_of(key: str, val: float) -> str:
    """Return the split of a sample.

    It depends on the hash of the key alone, so it does not change when a dataset grows.

    Args:
        val: share of the samples in "val", 0 to 1; the others are in "train".
    """
    digest = hashlib.sha256(key.encode()).digest()
    return VAL if int.from_bytes(digest[:8]) < val * 2**64 else TRAIN


def read_sound_markers(store: Store) -> dict[int, Marker]:
    """Return the marker of each shard by number, ascending.

    Raises:
        DamagedShardError: a shard was committed, but is missing or of another size now.
        InputError: there is no committed shard.
    """
    sizes = list_shard_files(store)
    markers = dict(scan_markers(store, sizes))
    for number, files in sizes.items():
        if MARKER in files and number not in markers:
            raise DamagedShardError(
                f"{store}/shards/{format_shard_name(number)}: differs from its marker; "
                f"see `synthgen check {store}`"
            )
    if not markers:
        raise InputError(
            f"{store}: no dataset here: it has no finished shard "
            "(shards/000000.tar with its marker)"
        )
    return markers


def read_samples(store: Store, number: int) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield row and encoded image of each sample of a shard, in order.

    One image is in memory at a time.

    Raises:
        DamagedShardError: the tar of the shard does not match its table.
    """
    tar = store.path(format_shard_file(number, TAR))
    rows = {format_image_name(row): row for row in read_rows(store, number)}
    count = 0
    for name, data in list_shard_members(store, number):
        row = rows.get(name)
        if row is None:
            continue
        if hashlib.sha256(data).hexdigest() != row["image_sha256"]:
            raise DamagedShardError(
                f"{tar}: {name} differs from its row (sha256); see `synthgen check {store}`"
            )
        count += 1
        yield row, data
    if count != len(rows):
        raise DamagedShardError(
            f"{tar}: holds {count} of {len(rows)} images; see `synthgen check {store}`"
        )


def parse_samples(tar: BinaryIO, place: str) -> Iterator[Sample]:
    """Yield the samples of a shard's tar, in order.

    Args:
        place: named in errors.

    Raises:
        DamagedShardError: the members are not pairs of an image and its JSON.
    """
    members = read_members(tar, place)
    for name, image in members:
        key, _, suffix = name.partition(".")
        record_name, record = next(members, ("nothing", b""))
        if suffix not in IMAGE_FORMATS or record_name != f"{key}.json":
            raise DamagedShardError(
                f"{place}: {name!r} and {record_name!r} are not an image and its json"
            )
        try:
            sample = parse_sample(record, image, suffix)
        except ValueError as error:
            raise DamagedShardError(f"{place}: {key!r}: {get_first_line(error)}") from None
        if sample.key != key:
            raise DamagedShardError(f"{place}: {key!r}: its index is {sample.index}")
        yield sample


def decode_image(data: bytes, place: str) -> Image.Image:
    """Return an image of a shard as RGB, completely decoded.

    Args:
        place: named in errors.

    Raises:
        DamagedShardError: it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except DECODE_ERRORS as error:
        message = f"{place}: image does not decode: {get_first_line(error)}"
        raise DamagedShardError(message) from None
