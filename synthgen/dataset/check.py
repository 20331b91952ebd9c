"""The check of a dataset: every shard against its marker, every picture decoded, every box inside, COCO loads."""

import contextlib
import hashlib
import io
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
from PIL import Image

from synthgen.dataset.coco import WHOLE, coco_file
from synthgen.dataset.info import DatasetInfo, read_info
from synthgen.dataset.marker import (
    TABLE,
    TAR,
    Marker,
    count_marked,
    read_marker,
    shard_file,
    shard_name,
    shard_sizes,
)
from synthgen.dataset.sample import annotations_of, conditions_of
from synthgen.dataset.shard import DamagedShardError, parse_table, read_members, rows_of
from synthgen.errors import InputError, first_line
from synthgen.images import DAMAGED
from synthgen.storage.base import Store
from synthgen.storage.local import digest_of
from synthgen.storage.parquet import open_parquet
from synthgen.strict_json import from_json

NOT_WHAT_WE_WRITE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RecursionError,
)  # of any JSON
REQUIRED = ("job.yaml", "dataset.json", "index.json", "manifest.parquet", "README.md")
MOST_TOLD = 5  # missing samples


@dataclass
class Examined:
    """What a check found.

    Attributes:
        faults: each as `file: what`.
        shards: how many samples each shard has, by number; None: it has faults.
        counts: of what was looked at: {"images", "boxes", "shards"}.
    """

    faults: list[str] = field(default_factory=list)
    shards: dict[int, int | None] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: {"images": 0, "boxes": 0, "shards": 0})


def check_dataset(store: Store) -> tuple[list[str], dict[str, int]]:
    """All faults of a dataset, and the counts of what was looked at (`Examined`).

    Raises:
        InputError: there is nothing that a dataset is made of.
    """
    info = read_info(store)
    if info is None:
        if not shard_sizes(store) and not store.exists("dataset.json"):
            raise InputError(f"{store}: no dataset here; name the output folder of `synthgen run`")
        return [f"{store}: no dataset here (dataset.json is missing or damaged)"], Examined().counts
    examined = examine(store, info)
    return examined.faults, examined.counts


def examine(store: Store, info: DatasetInfo) -> Examined:
    """Look at all of a dataset: one shard after the other; what is held at once is what one COCO file holds.

    Args:
        info: what dataset.json says, or should say.
    """
    examined = Examined()
    found = shard_sizes(store)
    marked = count_marked(found)
    coco_files = dict.fromkeys([coco_file(number, marked) for number in found] or [WHOLE])
    examined.faults += [f"{name}: missing" for name in REQUIRED if not store.exists(name)]
    examined.faults += _check_info(store)
    with ExitStack() as opened:
        whole, manifest = _Whole(store, info), _Manifest(store, opened)
        for name in coco_files:
            checked = _Checked()
            for number in [n for n in found if coco_file(n, marked) == name]:
                faults = list(check_shard(store, number, info, checked))
                examined.faults += faults
                examined.shards[number] = (
                    None if faults else checked.samples[shard_file(number, TAR)]
                )
            manifest.check(checked)
            examined.faults += whole.check(name, checked, checked.committed > 0 or marked == 0)
        examined.faults += [*whole.end(), *manifest.end()]
    examined.counts = {"images": whole.images, "boxes": whole.boxes, "shards": len(found)}
    return examined


class _Checked:
    """What some shards hold, as far as it is compared with the files beside them."""

    def __init__(self) -> None:
        self.annotations: dict[int, list[dict[str, Any]]] = {}
        self.hashes: dict[int, str] = {}
        self.samples: dict[str, int] = {}  # samples a shard
        self.committed = 0  # shards with a valid marker


def check_shard(store: Store, number: int, info: DatasetInfo, checked: _Checked) -> Iterator[str]:
    """Faults of one shard: sizes and digests, members, pictures, boxes, and its table against its tar."""
    name = shard_name(number)
    marker = read_marker(store, number)
    if marker is None:
        yield f"shards/{name}.json: no valid marker, or a file of the shard is missing or of another size"
        return
    checked.committed += 1
    yield from _check_files(name, marker, info)
    table = store.read(shard_file(number, TABLE))
    with store.open(shard_file(number, TAR)) as tar:
        digests = {TAR: digest_of(tar), TABLE: hashlib.sha256(table).hexdigest()}
        committed = {TAR: marker.sha256, TABLE: marker.parquet_sha256}
        damaged = [suffix for suffix in digests if digests[suffix] != committed[suffix]]
        yield from (
            f"shards/{name}{s}: its bytes are not those that were committed (sha256)"
            for s in damaged
        )
        if damaged:
            return
        try:
            members = dict(read_members(tar, shard_file(number, TAR)))
            rows = rows_of(
                parse_table(table, shard_file(number, TABLE)), shard_file(number, TABLE), number
            )
        except DamagedShardError as error:
            yield str(error)
            return
    checked.samples[shard_file(number, TAR)] = len(rows)
    yield from _check_members(name, marker, members, rows, checked)
    yield from _check_categories(name, rows, info)


def _check_info(store: Store) -> Iterator[str]:
    """A fault if dataset.json, which was read, is no JSON for others."""
    try:
        from_json(store.read("dataset.json"))
    except ValueError as error:
        yield f"dataset.json: {first_line(error)}; run `synthgen finalize`"


def _check_files(name: str, marker: Marker, info: DatasetInfo) -> Iterator[str]:
    """A fault for each file (a model's, most of all) that a shard was made with in another state than the dataset says."""
    files = marker.numerics.get("files", {})
    for key, value in files.items() if isinstance(files, dict) else ():
        if value != (wanted := info.fingerprint.get(key)):
            yield f"shards/{name}.json: made with another file: {key} is {value!r}, that of the job {wanted!r}"


def _check_members(
    name: str,
    marker: Marker,
    members: dict[str, bytes],
    rows: list[dict[str, Any]],
    checked: _Checked,
) -> Iterator[str]:
    indices = list(range(marker.first_index, marker.first_index + marker.count))
    if [row["index"] for row in rows] != indices:
        yield f"shards/{name}.parquet: its rows are not samples {indices[0]} to {indices[-1]}"
        return
    wanted = {f"{row['key']}.{suffix}" for row in rows for suffix in (row["image_format"], "json")}
    if wanted != set(members):
        yield f"shards/{name}.tar: members differ from the table: {sorted(wanted ^ set(members))[:4]}"
        return
    for row in rows:
        for fault in check_sample(
            row, members[f"{row['key']}.{row['image_format']}"], members[f"{row['key']}.json"]
        ):
            yield f"shards/{name}.tar: {row['key']}: {fault}"
        checked.annotations[row["index"]] = [
            annotation.to_coco() for annotation in annotations_of(row)
        ]
        checked.hashes[row["index"]] = row["image_sha256"]


def _check_categories(name: str, rows: list[dict[str, Any]], info: DatasetInfo) -> Iterator[str]:
    """A fault for each category that dataset.json does not know by that id."""
    pairs = {pair for row in rows for pair in zip(row["category"], row["category_id"], strict=True)}
    for category, number in sorted(pairs):
        if info.category_ids.get(category) != number:
            known = info.category_ids.get(category, "none")
            yield f"shards/{name}.parquet: category {category!r} has id {number}, in dataset.json {known}"


def check_sample(row: dict[str, Any], picture: bytes, record: bytes) -> Iterator[str]:
    """Faults of one sample."""
    try:
        with Image.open(io.BytesIO(picture)) as image:
            image.load()
            if image.size != (row["width"], row["height"]):
                yield f"picture is {image.size}, its row says {row['width']} x {row['height']}"
    except DAMAGED as error:
        yield f"picture does not decode: {first_line(error)}"
    if hashlib.sha256(picture).hexdigest() != row["image_sha256"]:
        yield "picture differs from its row (sha256)"
    if row.get("source") is not None:
        try:
            from_json(row["source"])
        except (ValueError, RecursionError) as error:
            yield f"source is no JSON: {first_line(error)}"
    try:
        data = from_json(record)
        annotations, conditions = data["annotations"], data.get("conditions", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        yield f"json cannot be read: {first_line(error)}"
        return
    labels = annotations_of(row)
    if annotations != [label.to_coco() for label in labels]:
        yield "json and row have different annotations"
    if conditions != conditions_of(row):
        yield "json and row have different conditions"
    for label in labels:
        x, y, w, h = label.bbox
        if not (
            w > 0
            and h > 0
            and x >= 0
            and y >= 0
            and x + w <= row["width"] + 1e-3
            and y + h <= row["height"] + 1e-3
        ):
            yield f"box {list(label.bbox)} is not inside the picture"


class _Whole:
    """Compares the files of the dataset as a whole with its shards, which are shown to it in parts."""

    def __init__(self, store: Store, info: DatasetInfo) -> None:
        self.store = store
        self.info = info
        self.images = self.boxes = self.next = 0
        self.missing: list[int] = []
        self.samples: dict[str, int] = {}

    def check(self, coco: str, checked: _Checked, is_written: bool) -> Iterator[str]:
        """Faults of a COCO file, against the shards that belong to it.

        Args:
            is_written: `finalize` writes the file; of shards that no valid marker makes part of the dataset it writes none.
        """
        for index in sorted(checked.annotations):
            self.missing += range(self.next, min(index, self.next + MOST_TOLD))
            if index < self.next:
                yield f"shards: sample {index} is in two shards"
            self.next = index + 1
        if is_written:
            yield from self._check_coco(coco, checked)
        self.samples |= checked.samples
        self.images += len(checked.annotations)
        self.boxes += sum(map(len, checked.annotations.values()))

    def end(self) -> Iterator[str]:
        """Faults that show when all shards were seen."""
        if self.missing:
            yield f"shards: samples {self.missing[:MOST_TOLD]} are missing"
        if self.images != self.info.asked:
            yield f"shards: {self.images} images, the job asks for {self.info.asked}"
        yield from self._check_index()

    def _check_index(self) -> Iterator[str]:
        try:
            listed = {
                s["url"]: s["nsamples"]
                for s in from_json(self.store.read("index.json"))["shardlist"]
            }
        except NOT_WHAT_WE_WRITE as error:
            yield f"index.json: cannot be read: {first_line(error)}"
            return
        if listed != self.samples:
            yield "index.json: its shards differ from the folder; run `synthgen finalize`"

    def _check_coco(self, name: str, checked: _Checked) -> Iterator[str]:
        from pycocotools.coco import COCO

        if not self.store.exists(name):
            yield f"{name}: missing"
            return
        try:
            coco = COCO()
            coco.dataset = from_json(self.store.read(name))
            with contextlib.redirect_stdout(io.StringIO()):
                coco.createIndex()
            categories = {c["name"]: c["id"] for c in coco.dataset["categories"]}
            ids = [a["id"] for a in coco.dataset["annotations"]]
            got = {
                i - 1: [
                    {k: v for k, v in a.items() if k not in ("id", "image_id")}
                    for a in coco.imgToAnns[i]
                ]
                for i in coco.imgs
            }
        except NOT_WHAT_WE_WRITE as error:
            yield f"{name}: cannot be read: {first_line(error)}"
            return
        if categories != self.info.category_ids:
            yield f"{name}: its categories differ from dataset.json"
        if ids != list(range(self.boxes + 1, self.boxes + 1 + len(ids))):
            yield f"{name}: annotation ids are not {self.boxes + 1}, {self.boxes + 2}, {self.boxes + 3} …"
        if got != checked.annotations:
            yield f"{name}: its boxes differ from the shards; run `synthgen finalize`"


class _Manifest:
    """Compares manifest.parquet with the shards, part by part, as it is read."""

    def __init__(self, store: Store, opened: ExitStack) -> None:
        self.fault = ""
        self.rows: Iterator[tuple[int, str]] = iter(())
        with self._reading():
            file = opened.enter_context(store.open_table("manifest.parquet"))
            batches = open_parquet(file).iter_batches(
                columns=["index", "image_sha256"], use_threads=False
            )
            self.rows = (
                pair
                for b in batches
                for pair in zip(b["index"].to_pylist(), b["image_sha256"].to_pylist(), strict=True)
            )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
            self.fault = f"manifest.parquet: cannot be read: {first_line(error)}"

    def _compare(self, same: bool) -> None:
        if not same and not self.fault:
            self.fault = (
                "manifest.parquet: its rows differ from the shards; run `synthgen finalize`"
            )

    def check(self, checked: _Checked) -> None:
        with self._reading():
            self._compare(dict(islice(self.rows, len(checked.hashes))) == checked.hashes)

    def end(self) -> Iterator[str]:
        """The first fault that was found, if any."""
        with self._reading():
            self._compare(next(self.rows, None) is None)
        if self.fault:
            yield self.fault
