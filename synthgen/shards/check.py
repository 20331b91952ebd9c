"""The check of a dataset: every shard against its marker, every picture decoded, every box inside, COCO loads."""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from synthgen.records.pictures import DAMAGED
from synthgen.shards.dataset import DatasetInfo, read_info
from synthgen.shards.sample import annotations_of, conditions_of, sample_key
from synthgen.shards.shard import (
    DamagedShardError,
    Marker,
    first_line,
    read_marker,
    read_members,
    read_rows,
    shard_name,
    shard_numbers,
    shard_path,
)
from synthgen.shards.store import digest

NOT_WHAT_WE_WRITE = (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError)  # of any JSON
REQUIRED = ("job.yaml", "dataset.json", "index.json", "manifest.parquet", "README.md", "annotations/instances.json")


def check_dataset(out: Path) -> tuple[list[str], dict[str, int]]:
    """All faults of an output folder, each as `file: what`, and the counts of what was looked at."""
    info = read_info(out)
    if info is None:
        return [f"{out}: no dataset here (dataset.json is missing or damaged)"], {"images": 0, "boxes": 0, "shards": 0}
    checked, numbers = Checked(), shard_numbers(out)
    faults = missing_files(out)
    for number in numbers:
        faults += [*check_shard(out, number, checked), *check_files(out, number, info)]
    faults += list(check_whole(out, info, checked))
    boxes = sum(len(a) for a in checked.annotations.values())
    return faults, {"images": len(checked.annotations), "boxes": boxes, "shards": len(numbers)}


def missing_files(out: Path) -> list[str]:
    """A fault for each file of a dataset that is not there."""
    return [f"{name}: missing" for name in REQUIRED if not (out / name).exists()]


class Checked:
    """What the shards hold, as far as it is compared with the files beside them."""

    def __init__(self) -> None:
        self.annotations: dict[int, list[dict[str, Any]]] = {}
        self.hashes: dict[int, str] = {}
        self.samples: dict[str, int] = {}  # samples a shard


def check_shard(out: Path, number: int, checked: Checked) -> Iterator[str]:
    """Faults of one shard: sizes and digests, members, pictures, boxes, and its table against its tar."""
    name = shard_name(number)
    marker = read_marker(out, number)
    if marker is None:
        yield f"shards/{name}.json: no valid marker, or a file of the shard is missing or of another size"
        return
    tar, parquet = shard_path(out, number, ".tar"), shard_path(out, number, ".parquet")
    damaged = [path for path, wanted in ((tar, marker.sha256), (parquet, marker.parquet_sha256)) if digest(path) != wanted]
    yield from (f"shards/{path.name}: its bytes are not those that were committed (sha256)" for path in damaged)
    if damaged:
        return
    try:
        members = dict(read_members(tar))
        rows = read_rows(out, number)
    except DamagedShardError as error:
        yield f"shards/{name}: {error}"
        return
    checked.samples[f"shards/{name}.tar"] = len(rows)
    yield from _check_members(name, marker, members, rows, checked)


def check_files(out: Path, number: int, info: DatasetInfo) -> Iterator[str]:
    """A fault for each file (a model's, most of all) that a shard was made with in another state than the dataset says."""
    marker = read_marker(out, number)
    files = marker.numerics.get("files", {}) if marker else {}
    for key, value in files.items() if isinstance(files, dict) else ():
        if value != (wanted := info.fingerprint.get(key)):
            yield f"shards/{shard_name(number)}.json: made with another file: {key} is {value!r}, that of the job {wanted!r}"


def _check_members(
    name: str, marker: Marker, members: dict[str, bytes], rows: list[dict[str, Any]], checked: Checked
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
        for fault in check_sample(row, members[f"{row['key']}.{row['image_format']}"], members[f"{row['key']}.json"]):
            yield f"shards/{name}.tar: {row['key']}: {fault}"
        checked.annotations[row["index"]] = annotations_of(row)
        checked.hashes[row["index"]] = row["image_sha256"]


def check_sample(row: dict[str, Any], picture: bytes, record: bytes) -> Iterator[str]:
    """Faults of one sample."""
    if row["key"] != sample_key(row["index"]):
        yield f"key does not match index {row['index']}"
    try:
        with Image.open(io.BytesIO(picture)) as image:
            image.load()
            if image.size != (row["width"], row["height"]):
                yield f"picture is {image.size}, its row says {row['width']} x {row['height']}"
    except DAMAGED as error:
        yield f"picture does not decode: {error}"
    if hashlib.sha256(picture).hexdigest() != row["image_sha256"]:
        yield "picture differs from its row (sha256)"
    try:
        data = json.loads(record)
        annotations, conditions = data["annotations"], data.get("conditions", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        yield "json cannot be read"
        return
    if annotations != annotations_of(row):
        yield "json and row have different annotations"
    if conditions != conditions_of(row):
        yield "json and row have different conditions"
    for annotation in annotations_of(row):
        x, y, w, h = annotation["bbox"]
        if not (w > 0 and h > 0 and x >= 0 and y >= 0 and x + w <= row["width"] + 1e-3 and y + h <= row["height"] + 1e-3):
            yield f"box {annotation['bbox']} is not inside the picture"


def check_whole(out: Path, info: DatasetInfo, checked: Checked) -> Iterator[str]:
    """Faults of the dataset as a whole: counts, indices, and the files made from the shards."""
    found = sorted(checked.annotations)
    if found != list(range(len(found))):
        missing = islice((i for i in range(found[-1] + 1) if i not in checked.annotations), 5)
        yield f"shards: samples {list(missing)} are missing"
    if len(found) != info.asked:
        yield f"shards: {len(found)} images, the job asks for {info.asked}"
    yield from _check_manifest(out, checked)
    yield from _check_index(out, checked)
    yield from _check_coco(out, info, checked)


def _check_manifest(out: Path, checked: Checked) -> Iterator[str]:
    try:
        table = pq.read_table(out / "manifest.parquet", columns=["index", "image_sha256"])
        listed = dict(zip(table["index"].to_pylist(), table["image_sha256"].to_pylist(), strict=True))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        yield f"manifest.parquet: cannot be read: {first_line(error)}"
        return
    if listed != checked.hashes:
        yield "manifest.parquet: its rows differ from the shards; run `synthgen finalize`"


def _check_index(out: Path, checked: Checked) -> Iterator[str]:
    try:
        listed = {s["url"]: s["nsamples"] for s in json.loads((out / "index.json").read_text())["shardlist"]}
    except NOT_WHAT_WE_WRITE as error:
        yield f"index.json: cannot be read: {first_line(error)}"
        return
    if listed != checked.samples:
        yield "index.json: its shards differ from the folder; run `synthgen finalize`"


def _check_coco(out: Path, info: DatasetInfo, checked: Checked) -> Iterator[str]:
    from pycocotools.coco import COCO

    path = out / "annotations" / "instances.json"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(path))
        categories = {c["name"]: c["id"] for c in coco.dataset["categories"]}
        ids = [a["id"] for a in coco.dataset["annotations"]]
        got = {i - 1: [{k: v for k, v in a.items() if k not in ("id", "image_id")} for a in coco.imgToAnns[i]] for i in coco.imgs}
    except NOT_WHAT_WE_WRITE as error:
        yield f"annotations/instances.json: cannot be read: {first_line(error)}"
        return
    if categories != info.category_ids:
        yield "annotations/instances.json: its categories differ from dataset.json"
    if ids != list(range(1, len(ids) + 1)):
        yield "annotations/instances.json: annotation ids are not 1, 2, 3 …"
    if got != checked.annotations:
        yield "annotations/instances.json: its boxes differ from the shards; run `synthgen finalize`"
