"""The check of a dataset: shards, markers, images, boxes, and the files beside the shards."""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
from PIL import Image

from synthgen.annotations import Annotation
from synthgen.dataset.coco import WHOLE, format_coco_name
from synthgen.dataset.info import DatasetInfo, read_info
from synthgen.dataset.marker import (
    TABLE,
    TAR,
    Marker,
    count_marked,
    format_shard_file,
    format_shard_name,
    list_shard_files,
    read_marker,
)
from synthgen.dataset.sample import format_image_name, read_annotations, read_conditions
from synthgen.dataset.shard import DamagedShardError, parse_rows, parse_table, read_members
from synthgen.errors import InputError, get_first_line
from synthgen.images import DECODE_ERRORS
from synthgen.storage.base import Store
from synthgen.storage.local import hash_open_file
from synthgen.storage.parquet import open_parquet
from synthgen.strict_json import from_json

# What reading arbitrary JSON as one of our files raises.
UNEXPECTED_CONTENT = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RecursionError,
)
REQUIRED = ("job.yaml", "dataset.json", "index.json", "manifest.parquet", "README.md")
MAX_LISTED = 5  # missing samples that a fault names
TOLERANCE = 1e-3  # px by which a box may exceed its image


@dataclass
class CheckResult:
    """The result of a check.

    Attributes:
        faults: the faults, each as `file: what is wrong`.
        shards: number of a shard to its count of samples; None if the shard has faults.
        counts: the number of checked "images", "boxes" and "shards".
    """

    faults: list[str] = field(default_factory=list)
    shards: dict[int, int | None] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: {"images": 0, "boxes": 0, "shards": 0})


Report = Callable[[int, int], None]
"""Called after each shard, with the numbers of checked shards and of all shards."""


def check_dataset(store: Store, report: Report | None = None) -> tuple[list[str], dict[str, int]]:
    """Return all faults of a dataset, and the counts of what was checked (see `CheckResult`).

    Raises:
        InputError: the folder has none of the files of a dataset.

    Examples:
        >>> faults, counts = check_dataset(open_store("out/pasted"))
        >>> faults
        []
        >>> counts["images"]
        2
    """
    info = read_info(store)
    if info is None:
        if not list_shard_files(store) and not store.exists("dataset.json"):
            raise InputError(f"{store}: no dataset here; name the output folder of `synthgen run`")
        fault = f"{store}: no dataset here (dataset.json is missing or damaged)"
        return [fault], CheckResult().counts
    result = examine_dataset(store, info, report)
    return result.faults, result.counts


def examine_dataset(store: Store, info: DatasetInfo, report: Report | None = None) -> CheckResult:
    """Check a whole dataset, one shard after the other.

    Memory grows with what one COCO file holds, not with the dataset.

    Args:
        info: the content of dataset.json, or what it should be.
    """
    result = CheckResult()
    sizes = list_shard_files(store)
    marked = count_marked(sizes)
    result.faults += [f"{name}: missing" for name in REQUIRED if not store.exists(name)]
    result.faults += _check_info(store)
    with ExitStack() as stack:
        summary = _SummaryCheck(store, info)
        manifest = _ManifestCheck(store, stack)
        for coco_name, numbers in _group_by_coco_file(sizes, marked).items():
            content = _ShardContent()
            for number in numbers:
                faults = list(check_shard(store, number, info, content))
                result.faults += faults
                count = content.samples.get(format_shard_file(number, TAR))
                result.shards[number] = None if faults else count
                if report is not None:
                    report(len(result.shards), len(sizes))
            manifest.check(content)
            is_written = content.committed > 0 or marked == 0
            result.faults += summary.check(coco_name, content, is_written)
        result.faults += summary.end()
        result.faults += manifest.end()
    result.counts = {"images": summary.images, "boxes": summary.boxes, "shards": len(sizes)}
    return result


def _group_by_coco_file(numbers: Iterable[int], marked: int) -> dict[str, list[int]]:
    """Return the numbers of the shards by the name of their COCO file; without shards, one file."""
    groups: dict[str, list[int]] = {}
    for number in numbers:
        groups.setdefault(format_coco_name(number, marked), []).append(number)
    return groups or {WHOLE: []}


class _ShardContent:
    """The content of some shards, as far as it is compared with the files beside them.

    Attributes:
        annotations: COCO annotations of each image, by sample index.
        hashes: SHA-256 of each image, by sample index.
        samples: number of samples of each shard, by the name of its tar.
        committed: number of shards with a valid marker.
    """

    def __init__(self) -> None:
        self.annotations: dict[int, list[dict[str, Any]]] = {}
        self.hashes: dict[int, str] = {}
        self.samples: dict[str, int] = {}
        self.committed = 0


def check_shard(
    store: Store, number: int, info: DatasetInfo, content: _ShardContent
) -> Iterator[str]:
    """Yield the faults of one shard: sizes and digests, members, images, boxes, table and tar.

    Args:
        content: is extended by what the shard holds.
    """
    name = format_shard_name(number)
    marker = read_marker(store, number)
    if marker is None:
        yield (
            f"shards/{name}.json: no valid marker, "
            "or a file of the shard is missing or of another size"
        )
        return
    content.committed += 1
    yield from _check_files(name, marker, info)
    tar_name = format_shard_file(number, TAR)
    table_name = format_shard_file(number, TABLE)
    table = store.read(table_name)
    with store.open(tar_name) as tar:
        is_damaged = False
        for file_name, digest, committed_digest in (
            (tar_name, hash_open_file(tar), marker.sha256),
            (table_name, hashlib.sha256(table).hexdigest(), marker.parquet_sha256),
        ):
            if digest != committed_digest:
                is_damaged = True
                yield f"{file_name}: its bytes are not those that were committed (sha256)"
        if is_damaged:
            return
        try:
            members = dict(read_members(tar, tar_name))
            rows = parse_rows(parse_table(table, table_name), table_name, number)
        except DamagedShardError as error:
            yield str(error)
            return
    content.samples[tar_name] = len(rows)
    yield from _check_members(name, marker, members, rows, content)
    yield from _check_categories(name, rows, info)


def _check_info(store: Store) -> Iterator[str]:
    """Yield a fault if dataset.json, which could be read, is not strict JSON."""
    try:
        from_json(store.read("dataset.json"))
    except ValueError as error:
        yield f"dataset.json: {get_first_line(error)}; run `synthgen finalize`"


def _check_files(name: str, marker: Marker, info: DatasetInfo) -> Iterator[str]:
    """Yield a fault for each file (such as weights) that has changed since the shard was made."""
    files = marker.numerics.get("files", {})
    if not isinstance(files, dict):
        return
    for key, value in files.items():
        wanted = info.fingerprint.get(key)
        if value != wanted:
            yield (
                f"shards/{name}.json: made with another file: "
                f"{key} is {value!r}, that of the job {wanted!r}"
            )


def _check_members(
    name: str,
    marker: Marker,
    members: dict[str, bytes],
    rows: list[dict[str, Any]],
    content: _ShardContent,
) -> Iterator[str]:
    """Yield the faults of the samples of a shard, and add the samples to the content."""
    indices = list(range(marker.first_index, marker.first_index + marker.count))
    if [row["index"] for row in rows] != indices:
        yield f"shards/{name}.parquet: its rows are not samples {indices[0]} to {indices[-1]}"
        return
    wanted = set()
    for row in rows:
        wanted |= {format_image_name(row), f"{row['key']}.json"}
    if wanted != set(members):
        differing = sorted(wanted ^ set(members))[:4]
        yield f"shards/{name}.tar: members differ from the table: {differing}"
        return
    for row in rows:
        image = members[format_image_name(row)]
        record = members[f"{row['key']}.json"]
        for fault in check_sample(row, image, record):
            yield f"shards/{name}.tar: {row['key']}: {fault}"
        annotations = [annotation.to_coco() for annotation in read_annotations(row)]
        content.annotations[row["index"]] = annotations
        content.hashes[row["index"]] = row["image_sha256"]


def _check_categories(name: str, rows: list[dict[str, Any]], info: DatasetInfo) -> Iterator[str]:
    """Yield a fault for each category whose id differs from dataset.json."""
    pairs: set[tuple[str, int]] = set()
    for row in rows:
        pairs.update(zip(row["category"], row["category_id"], strict=True))
    for category, number in sorted(pairs):
        known = info.category_ids.get(category)
        if known != number:
            yield (
                f"shards/{name}.parquet: category {category!r} has id {number}, "
                f"in dataset.json {known or 'none'}"
            )


def check_sample(row: dict[str, Any], image: bytes, record: bytes) -> Iterator[str]:
    """Yield the faults of one sample.

    Args:
        row: the sample's row in the table of the shard.
        image: the encoded image.
        record: the bytes of `<key>.json`.
    """
    yield from _check_image(row, image)
    if row.get("source") is not None:
        try:
            from_json(row["source"])
        except (ValueError, RecursionError) as error:
            yield f"source is no JSON: {get_first_line(error)}"
    try:
        data = from_json(record)
        annotations = data["annotations"]
        conditions = data.get("conditions", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        yield f"json cannot be read: {get_first_line(error)}"
        return
    labels = read_annotations(row)
    if annotations != [label.to_coco() for label in labels]:
        yield "json and row have different annotations"
    if conditions != read_conditions(row):
        yield "json and row have different conditions"
    for label in labels:
        if not _is_inside(label, row["width"], row["height"]):
            yield f"box {list(label.bbox)} is not inside the image"


def _check_image(row: dict[str, Any], data: bytes) -> Iterator[str]:
    """Yield the faults of an encoded image: it is damaged, or differs from its row."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.size != (row["width"], row["height"]):
                yield f"image is {image.size}, its row says {row['width']} x {row['height']}"
    except DECODE_ERRORS as error:
        yield f"image does not decode: {get_first_line(error)}"
    if hashlib.sha256(data).hexdigest() != row["image_sha256"]:
        yield "image differs from its row (sha256)"


def _is_inside(label: Annotation, width: int, height: int) -> bool:
    """Return whether a box has an area and is inside an image of this size in px."""
    x, y, w, h = label.bbox
    if not (w > 0 and h > 0 and x >= 0 and y >= 0):
        return False
    return x + w <= width + TOLERANCE and y + h <= height + TOLERANCE


class _SummaryCheck:
    """Compares index.json, the COCO files and dataset.json with the shards, in order."""

    def __init__(self, store: Store, info: DatasetInfo) -> None:
        self.store = store
        self.info = info
        self.images = 0
        self.boxes = 0
        self.next_index = 0
        self.missing: list[int] = []
        self.samples: dict[str, int] = {}

    def check(self, coco_name: str, content: _ShardContent, is_written: bool) -> Iterator[str]:
        """Yield the faults of a COCO file, compared with the shards that belong to it.

        Args:
            is_written: `finalize` writes the file. It does not if none of the shards has a valid
                marker.
        """
        for index in sorted(content.annotations):
            self.missing += range(self.next_index, min(index, self.next_index + MAX_LISTED))
            if index < self.next_index:
                yield f"shards: sample {index} is in two shards"
            self.next_index = index + 1
        if is_written:
            yield from self._check_coco(coco_name, content)
        self.samples |= content.samples
        self.images += len(content.annotations)
        self.boxes += sum(map(len, content.annotations.values()))

    def end(self) -> Iterator[str]:
        """Yield the faults that show after the last shard."""
        if self.missing:
            yield f"shards: samples {self.missing[:MAX_LISTED]} are missing"
        if self.images != self.info.asked:
            yield f"shards: {self.images} images, the job asks for {self.info.asked}"
        yield from self._check_index()

    def _check_index(self) -> Iterator[str]:
        try:
            shards = from_json(self.store.read("index.json"))["shardlist"]
            listed = {shard["url"]: shard["nsamples"] for shard in shards}
        except UNEXPECTED_CONTENT as error:
            yield f"index.json: cannot be read: {get_first_line(error)}"
            return
        if listed != self.samples:
            yield "index.json: its shards differ from the folder; run `synthgen finalize`"

    def _check_coco(self, name: str, content: _ShardContent) -> Iterator[str]:
        from pycocotools.coco import COCO

        if not self.store.exists(name):
            yield f"{name}: missing"
            return
        try:
            coco = COCO()
            coco.dataset = from_json(self.store.read(name))
            with contextlib.redirect_stdout(io.StringIO()):
                coco.createIndex()
            categories = {entry["name"]: entry["id"] for entry in coco.dataset["categories"]}
            ids = [annotation["id"] for annotation in coco.dataset["annotations"]]
            annotations = _group_annotations(coco)
        except UNEXPECTED_CONTENT as error:
            yield f"{name}: cannot be read: {get_first_line(error)}"
            return
        if categories != self.info.category_ids:
            yield f"{name}: its categories differ from dataset.json"
        first = self.boxes + 1
        if ids != list(range(first, first + len(ids))):
            yield f"{name}: annotation ids are not {first}, {first + 1}, {first + 2} …"
        if annotations != content.annotations:
            yield f"{name}: its boxes differ from the shards; run `synthgen finalize`"


def _group_annotations(coco: Any) -> dict[int, list[dict[str, Any]]]:
    """Return the annotations of a COCO file by sample index, without `id` and `image_id`."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for image_id in coco.imgs:
        annotations = []
        for annotation in coco.imgToAnns[image_id]:
            fields = annotation.items()
            annotations.append({k: v for k, v in fields if k not in ("id", "image_id")})
        groups[image_id - 1] = annotations
    return groups


class _ManifestCheck:
    """Compares manifest.parquet with the shards in order, reading one batch at a time."""

    def __init__(self, store: Store, stack: ExitStack) -> None:
        self.fault = ""
        self.rows: Iterator[tuple[int, str]] = iter(())
        with self._reading():
            file = stack.enter_context(store.open_table("manifest.parquet"))
            columns = ["index", "image_sha256"]
            batches = open_parquet(file).iter_batches(columns=columns, use_threads=False)
            self.rows = _iterate_rows(batches)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Keep an error of reading as the fault."""
        try:
            yield
        except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
            self.fault = f"manifest.parquet: cannot be read: {get_first_line(error)}"

    def _compare(self, is_same: bool) -> None:
        if not is_same and not self.fault:
            self.fault = (
                "manifest.parquet: its rows differ from the shards; run `synthgen finalize`"
            )

    def check(self, content: _ShardContent) -> None:
        """Compare the next rows with some shards."""
        with self._reading():
            rows = dict(islice(self.rows, len(content.hashes)))
            self._compare(rows == content.hashes)

    def end(self) -> Iterator[str]:
        """Yield the first fault, if there is any."""
        with self._reading():
            self._compare(next(self.rows, None) is None)
        if self.fault:
            yield self.fault


def _iterate_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, str]]:
    """Yield index and SHA-256 of each row."""
    for batch in batches:
        indices = batch["index"].to_pylist()
        hashes = batch["image_sha256"].to_pylist()
        yield from zip(indices, hashes, strict=True)
