"""The files that make shards a dataset: job, index, annotations, manifest, card."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from synthgen.errors import InputError
from synthgen.shards.card import SHEET_IMAGES, write_card, write_contact_sheet
from synthgen.shards.coco import write_instances
from synthgen.shards.sample import SCHEMA, VERIFIED, conditions_of, table_schema
from synthgen.shards.shard import committed, read_marker, read_rows, shard_name, shard_path
from synthgen.shards.store import JOURNAL, replacing, write_text

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "pillow", "ray")
DISTRIBUTION = "synthgen-layouts"
WRITTEN = (
    "job.yaml",
    "dataset.json",
    "index.json",
    "manifest.parquet",
    "README.md",
    "contact_sheet.jpg",
    "report.html",
    "skipped.jsonl",
    "failures.jsonl",
    JOURNAL,
)


class ChangedJobError(InputError):
    """The output holds another job; the message names the keys that differ."""


@dataclass(frozen=True)
class DatasetInfo:
    """What the driver tells of the job, and what outlives it in dataset.json.

    Attributes:
        image_format: jpg, png or webp; several, as WebDataset writes alternatives ("jpg;png"), if pictures were imported.
        imported: the form that the pictures were imported from; null: synthgen made them.
        source: of an imported COCO file all but its images and annotations (`synthgen.records.coco.head`).
    """

    name: str
    asked: int  # images
    fingerprint: dict[str, Any]
    category_ids: dict[str, int]
    image_format: str
    licence: str
    imported: str | None = None
    source: dict[str, Any] | None = None

    @property
    def about(self) -> str:
        """What the dataset is, in one line."""
        if self.imported:
            return f"pictures and labels imported by synthgen ({self.imported})"
        return "synthetic images made by synthgen; boxes are known by construction"


def versions() -> dict[str, str]:
    """Versions of synthgen and of what its pixels depend on, without importing any of them."""
    found = {}
    for package in (DISTRIBUTION, *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def read_info(out: Path) -> DatasetInfo | None:
    """What dataset.json says; None if there is none."""
    try:
        data = json.loads((out / "dataset.json").read_text())
        return DatasetInfo(**{name: data[name] for name in DatasetInfo.__dataclass_fields__ if name in data})
    except (OSError, ValueError, TypeError):
        return None


def write_info(out: Path, info: DatasetInfo, counts: dict[str, Any]) -> None:
    """Replace dataset.json."""
    write_text(out / "dataset.json", json.dumps({**vars(info), **counts, "versions": versions()}, indent=1) + "\n")


def refuse_changed(out: Path, info: DatasetInfo) -> None:
    """Raise ChangedJobError if the output was begun with another job, or holds more images than are asked for."""
    old = read_info(out)
    if old is None:
        return
    here, there = json.loads(json.dumps(info.fingerprint)), old.fingerprint
    changed = [
        f"{key}: was {there.get(key)!r}, is {here.get(key)!r}"
        for key in sorted({*here, *there})
        if here.get(key) != there.get(key)
    ]
    if old.asked > info.asked:
        changed.append(f"images: was {old.asked}, is {info.asked}; a dataset can be extended, not shortened")
    if changed:
        raise ChangedJobError(f"{out} holds another job: {'; '.join(changed)}. Give another output.path, or --overwrite")


def refuse_foreign(out: Path) -> None:
    """Raise ChangedJobError if the folder holds something that is not a dataset of ours."""
    if out.exists() and (not out.is_dir() or ((out / "shards").exists() and read_info(out) is None)):
        raise ChangedJobError(f"{out} exists and is not a synthgen dataset (no readable dataset.json); give another output.path")


def begin(out: Path, info: DatasetInfo, job: dict[str, Any]) -> None:
    """Write job.yaml and dataset.json before the first shard, so that a resumed run knows what it goes on with."""
    old = read_info(out)
    if old is None or old != info:
        write_info(out, info, {"images": 0, "complete": False})
    with replacing(out / "job.yaml") as temporary, temporary.open("w") as file:
        YAML(typ="safe", pure=True).dump(job, file)


def remove_dataset(out: Path) -> None:
    """Remove what synthgen writes in an output folder, and nothing else; of a folder that is no dataset of ours nothing."""
    if read_info(out) is None:
        return
    for folder in ("shards", "annotations"):
        shutil.rmtree(out / folder, ignore_errors=True)
    for name in WRITTEN:
        (out / name).unlink(missing_ok=True)


def finalize(out: Path, info: DatasetInfo) -> dict[str, Any]:
    """Write index, annotations, manifest, card and dataset.json for the shards committed so far.

    Returns:
        {"images", "boxes", "shards", "bytes", "complete"}: what the dataset now holds; and "verified": of all pictures that were
        looked at, boxes that do not hold, objects that nobody asked for, and repairs.
    """
    numbers = committed(out)
    write_index(out, info.name, numbers)
    coco_info = {
        "description": f"{info.name}: {info.about}",
        "version": versions().get(DISTRIBUTION, ""),
        "contributor": "synthgen",
    }
    write_instances(out / "annotations" / "instances.json", _rows(out, numbers), info.category_ids, coco_info, info.licence)
    counts = write_manifest(out, numbers)
    counts["complete"] = counts["images"] == info.asked
    first = [row for number in numbers[:SHEET_IMAGES] for row in read_rows(out, number)][:SHEET_IMAGES]
    write_contact_sheet(out, first)
    has_masks = any(_have_masks(out, number) for number in numbers)
    facts = {
        "images": counts["images"],
        "boxes": counts["boxes"],
        "shards": counts["shards"],
        "categories": ", ".join(info.category_ids),
        "licence": info.licence,
    }
    model = {k: v for k, v in info.fingerprint.items() if k in ("pipeline.method", "pipeline.model", "seed")}
    verified = any(row["failed"] is not None for row in first)
    from_coco = any(row.get("source") is not None for row in first)
    facts |= counts["verified"]
    drawn = list(conditions_of(first[0])) if first else []
    write_card(out, info, {**facts, **model}, has_masks, verified, drawn, from_coco)
    write_info(out, info, counts)
    return counts


def write_index(out: Path, name: str, numbers: list[int]) -> None:
    """Write index.json, the shard list that `wids` reads."""
    shards = []
    for number in numbers:
        marker = read_marker(out, number)
        if marker is not None:
            url = f"shards/{shard_name(number)}.tar"
            shards.append({"url": url, "md5sum": marker.md5, "nsamples": marker.count, "filesize": marker.bytes})
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": shards}
    write_text(out / "index.json", json.dumps(index, indent=1) + "\n")


def write_manifest(out: Path, numbers: list[int]) -> dict[str, Any]:
    """Join the shards' tables into manifest.parquet, one shard in memory at a time; returns the totals."""
    names = pq.read_schema(shard_path(out, numbers[0], ".parquet")).names if numbers else SCHEMA.names
    left_out = ("bbox", "segmentation", "area", "iscrowd", "source")
    columns = [f for f in table_schema(conditions_of(dict.fromkeys(names))) if f.name not in left_out]
    counts: dict[str, Any] = {"images": 0, "boxes": 0, "shards": len(numbers), "bytes": 0, "verified": {}}
    with replacing(out / "manifest.parquet") as temporary, pq.ParquetWriter(temporary, pa.schema(columns)) as writer:
        for number in numbers:
            table = pq.read_table(shard_path(out, number, ".parquet"), columns=[c.name for c in columns])
            writer.write_table(table)
            counts["images"] += table.num_rows
            counts["boxes"] += sum(table["n_boxes"].to_pylist())
            for name in VERIFIED:
                known = [n for n in table[name].to_pylist() if n is not None]
                if known:
                    counts["verified"][name] = counts["verified"].get(name, 0) + sum(known)
            counts["bytes"] += shard_path(out, number, ".tar").stat().st_size
    return counts


def _rows(out: Path, numbers: list[int]) -> Iterator[dict[str, Any]]:
    for number in numbers:
        yield from read_rows(out, number)


def _have_masks(out: Path, number: int) -> bool:
    table = pq.read_table(shard_path(out, number, ".parquet"), columns=["segmentation"])
    return any(counts is not None for row in table["segmentation"].to_pylist() for counts in row)
