"""The files that make shards a dataset: job, index, annotations, manifest, card."""

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter
from ruamel.yaml import YAML

from synthgen.errors import InputError
from synthgen.shards.card import SHEET_IMAGES, write_card, write_contact_sheet
from synthgen.shards.coco import CocoWriter, coco_head
from synthgen.shards.former import complete
from synthgen.shards.manifest import writing_index, writing_manifest
from synthgen.shards.sample import IMAGE_FORMATS, conditions_of
from synthgen.shards.shard import (
    MARKER,
    NUMBER,
    TABLE,
    ahead,
    count_marked,
    read_table,
    rows_of,
    scan,
    shard_file,
    shard_sizes,
)
from synthgen.shards.store import JOURNAL, LocalStore, Out, open_store
from synthgen.shards.strict_json import to_json

KINDS = "|".join(IMAGE_FORMATS)
REVISION = ".revision"  # how keys end that say how often a result has changed without a key of its own
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "pillow", "ray")
ALWAYS = ("numpy", "pillow")  # those of them that every pixel depends on
WITH_TORCH = ("torch", "diffusers", "transformers")  # those that it depends on where a network generates or verifies
DISTRIBUTION = "synthgen-layouts"
TABLES = 4  # read at the same time while finalising
WRITTEN = (
    "job.yaml",
    "index.json",
    "manifest.parquet",
    "README.md",
    "contact_sheet.jpg",
    "report.html",
    "skipped.jsonl",
    "failures.jsonl",
    JOURNAL,
    "dataset.json",  # removed last: without it the rest is not known to be ours
)


class ChangedJobError(InputError):
    """The output holds another job; the message names the keys that differ."""


def of_coco(source: dict[str, Any]) -> dict[str, Any]:
    """What `synthgen.records.coco.head` gives; raises ValueError if it is something else."""
    kinds = {"head": dict, "file_names": bool, "annotation_ids": bool}
    if not all(isinstance(source.get(name), kind) for name, kind in kinds.items()):
        raise ValueError(f"not a mapping of {', '.join(kinds)}")
    return source


@dataclass(frozen=True)
class DatasetInfo:
    """What the driver tells of the job, and what outlives it in dataset.json.

    Attributes:
        image_format: jpg, png or webp; several, as WebDataset writes alternatives ("jpg;png"), if pictures were imported.
        imported: the form that the pictures were imported from; null: synthgen made them.
        source: of an imported COCO file all but its images and annotations (`synthgen.records.coco.head`).
        sources: the datasets that were merged, in the order of their samples; null: it was not merged.
    """

    name: str
    asked: Annotated[int, Field(ge=0)]  # images
    fingerprint: dict[str, Any]
    category_ids: dict[str, Annotated[int, Field(ge=1)]]
    image_format: Annotated[str, Field(pattern=f"^({KINDS})(;({KINDS}))*$")]
    licence: str
    imported: str | None = None
    source: Annotated[dict[str, Any], AfterValidator(of_coco)] | None = None
    sources: list[dict[str, Any]] | None = None

    @property
    def about(self) -> str:
        """What the dataset is, in one line."""
        if self.sources:
            return f"{len(self.sources)} datasets merged by synthgen: {', '.join(str(s.get('name')) for s in self.sources)}"
        if self.imported:
            return f"pictures and labels imported by synthgen ({self.imported})"
        return "synthetic images made by synthgen; boxes are known by construction"


INFO = TypeAdapter(DatasetInfo)


@cache
def versions() -> dict[str, str]:
    """Versions of synthgen and of the packages that it runs on, without importing any of them."""
    found = {}
    for package in (DISTRIBUTION, *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def other_versions(there: Any, here: dict[str, str], names: Iterable[str]) -> str:
    """How versions that were recorded differ from others; empty: not at all, or they are not known.

    Args:
        there: "versions" of a marker's numerics, whatever it is.
        names: the packages that count.
    """
    if not isinstance(there, dict):
        return ""
    changed = [name for name in sorted(names) if name in there and there[name] != here.get(name)]
    return "; ".join(f"{name}: was {there[name]}, is {here.get(name)}" for name in changed)


def read_info(out: Out) -> DatasetInfo | None:
    """What dataset.json says; None if there is none."""
    try:
        return INFO.validate_json(open_store(out).read("dataset.json"), strict=True)
    except (OSError, ValueError):
        return None


def write_info(out: Out, info: DatasetInfo, counts: dict[str, Any]) -> None:
    """Replace dataset.json."""
    text = to_json({**vars(info), **counts, "versions": versions()}, indent=1) + "\n"
    open_store(out).write("dataset.json", text)


def refuse_changed(out: Out, info: DatasetInfo) -> None:
    """Raise ChangedJobError if the output has shards of another job, or holds more images than are asked for.

    An output without a shard belongs to nobody: a run that failed before its first shard does not stand in the way of a
    mended one.
    """
    old = read_info(out)
    changed = [] if old is None else changes(old, info)
    if changed and has_shard(out):
        raise ChangedJobError(f"{out} holds another job: {'; '.join(changed)}. Give another output.path, or --overwrite")


def has_shard(out: Out) -> bool:
    """Whether any shard was committed: whether there is a marker, whatever became of its shard since."""
    for name, _ in open_store(out).sizes("shards"):
        stem, dot, suffix = name.partition(".")
        if f"{dot}{suffix}" == MARKER and NUMBER.fullmatch(stem):
            return True
    return False


def changes(old: DatasetInfo, info: DatasetInfo) -> list[str]:
    """What another job says otherwise, each as `key: was …, is …`.

    A key that the old fingerprint does not know had its former default (`synthgen.shards.former`).
    """
    here = json.loads(json.dumps(info.fingerprint))
    there = complete(old.fingerprint, here)
    changed = []
    for key in sorted({*here, *there}):
        if here.get(key) != there.get(key):
            absent = "1" if key.endswith(REVISION) else "not set"
            was = repr(there[key]) if key in there else absent
            changed.append(f"{key}: was {was}, is {here[key]!r}" if key in here else f"{key}: was {was}, is not set")
    if old.asked > info.asked:
        changed.append(f"images: was {old.asked}, is {info.asked}; a dataset can be extended, not shortened")
    return changed


def refuse_foreign(out: Out) -> None:
    """Raise ChangedJobError if the folder holds shards that are no dataset of ours, or files that a dataset would replace."""
    store = open_store(out)
    local = store.root if isinstance(store, LocalStore) else None
    if local is not None and local.exists() and not local.is_dir():
        raise ChangedJobError(f"{out} is a file, not a folder; give another output.path")
    if read_info(store) is not None:
        return
    shards = (local / "shards").exists() if local is not None else next(store.sizes("shards"), None) is not None
    theirs = ["shards"] if shards else sorted(name for name, _ in store.sizes("") if name in WRITTEN and name != JOURNAL)
    if theirs:
        raise ChangedJobError(
            f"{out} has {', '.join(theirs)} and is not a synthgen dataset (no readable dataset.json); give another output.path"
        )


def begin(out: Out, info: DatasetInfo, job: dict[str, Any]) -> None:
    """Write job.yaml and dataset.json before the first shard, so that a resumed run knows what it goes on with.

    What a failed start of another job left is removed first: `refuse_changed` has found no shard of it.
    """
    old = read_info(out)
    if old is not None and changes(old, info):
        remove_dataset(out)
    if old is None or old != info:
        write_info(out, info, {"images": 0, "complete": False})
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(job, text)
    open_store(out).write("job.yaml", text.getvalue())


def remove_dataset(out: Out) -> None:
    """Remove what synthgen writes in an output folder, and nothing else; of a folder that is no dataset of ours nothing."""
    if read_info(out) is None:
        return
    store = open_store(out)
    for folder in ("shards", "annotations", JOURNAL):
        store.delete_folder(folder)
    for name in WRITTEN:
        store.delete(name)


def finalize(out: Out, info: DatasetInfo) -> dict[str, Any]:
    """Write index, annotations, manifest, card and dataset.json for the shards committed so far.

    One shard's table after the other is read, once; memory does not grow with their number.

    Returns:
        {"images", "boxes", "shards", "bytes", "complete"}: what the dataset now holds; "verified": of all pictures that were
        looked at, boxes that do not hold, objects that nobody asked for, and repairs; and "coco_files": how many there are.
    """
    store = open_store(out)
    found = shard_sizes(store)
    coco_info = {
        "description": f"{info.name}: {info.about}",
        "version": versions().get(DISTRIBUTION, ""),
        "contributor": "synthgen",
    }
    first: list[dict[str, Any]] = []
    with (
        writing_index(store, info.name) as index,
        writing_manifest(store) as manifest,
        CocoWriter(store, count_marked(found), coco_head(info.category_ids, coco_info, info.licence)) as coco,
    ):
        for number, marker, table in ahead(lambda shard: (*shard, read_table(store, shard[0])), scan(store, found), TABLES):
            index.add(number, marker)
            manifest.add(marker, table)
            rows = rows_of(table, store.path(shard_file(number, TABLE)), number)
            coco.add(number, rows)
            first += rows[: SHEET_IMAGES - len(first)]
    write_contact_sheet(store, first)
    counts = {**manifest.counts, "complete": manifest.counts["images"] == info.asked, "coco_files": len(coco.files)}
    conditions = list(conditions_of(first[0])) if first else []
    facts, verified = card_facts(info, counts), bool(counts["verified"])
    write_card(store, info, facts, coco.files[0], manifest.has_masks, verified, conditions, manifest.from_coco)
    write_info(store, info, counts)
    return counts


def card_facts(info: DatasetInfo, counts: dict[str, Any]) -> dict[str, Any]:
    """The table of the card."""
    facts = {
        "images": counts["images"],
        "boxes": counts["boxes"],
        "shards": counts["shards"],
        "categories": ", ".join(info.category_ids),
        "licence": info.licence,
    }
    model = {k: v for k, v in info.fingerprint.items() if k in ("pipeline.method", "pipeline.model", "pipeline.scale", "seed")}
    return {**facts, **counts["verified"], **model}
