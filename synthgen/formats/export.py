"""`synthgen export`: a dataset in the form that other programs read, one folder a form.

The work is done shard by shard, several at a time. A shard that is done leaves a mark, so that an export that was stopped
goes on, and one of a dataset that has grown takes the new shards along. What spans all shards is written at the
end, from their tables.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from synthgen.annotations import Annotation
from synthgen.dataset.classes import Labels, labels_of
from synthgen.dataset.info import DatasetInfo, read_info
from synthgen.dataset.marker import Marker, shard_name
from synthgen.dataset.sample import annotations_of
from synthgen.dataset.shard import read_rows
from synthgen.dataset.shard_reader import SPLITS, read_samples, sound_shards, split_of
from synthgen.errors import InputError
from synthgen.formats.base import writable_formats
from synthgen.storage.base import TEMPORARY, Store
from synthgen.storage.local import LocalStore, replacing, write_text
from synthgen.storage.location import open_store
from synthgen.storage.lock import Lock

RECORD, DONE = "export.json", ".export"


@dataclass(frozen=True)
class ExportSpec:
    """What to export and how.

    Attributes:
        source: a dataset: its folder, or its URL.
        form: the name of a format that is written (`synthgen.formats.base.writable_formats`).
        folder: where to write.
        val: share of the samples in the split "val", 0 to 1.
        renamed: categories to the names that they have in the export.
        workers: shards that are worked on at the same time.
    """

    source: str | Path
    form: str
    folder: Path
    val: float = 0.1
    renamed: Mapping[str, str] = field(default_factory=dict)
    workers: int = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Export:
    """What a form's module works with: the dataset, its classes, and the folder it becomes."""

    spec: ExportSpec
    store: Store
    info: DatasetInfo
    labels: Labels
    shards: Mapping[int, Marker]

    @property
    def folder(self) -> Path:
        return self.spec.folder

    def split(self, row: dict[str, Any]) -> str:
        return split_of(row["key"], self.spec.val)

    def rows(self, split: str | None = None) -> Iterator[dict[str, Any]]:
        """The rows of all shards, or those of a split, in order; those of one shard are in memory at a time."""
        for number in self.shards:
            yield from (
                row for row in read_rows(self.store, number) if split in (None, self.split(row))
            )

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each class, as COCO counts: of the category which is called so, else of the first that has become it."""
        ids: dict[str, int] = {}
        for category, number in sorted(
            self.info.category_ids.items(), key=lambda item: item[0] not in self.labels.names
        ):
            ids.setdefault(self.labels.name(category), number)
        return ids


class Writer(Protocol):
    """What the module that writes a format has.

    Attributes:
        CROWDS: whether the form has crowds; else they are left out.
    """

    CROWDS: bool

    def write_shard(self, export: Export, number: int) -> None:
        """Write what belongs to one shard alone; writing it again changes nothing."""

    def finish(self, export: Export) -> None:
        """Write what spans all shards."""


@dataclass(frozen=True)
class ExportResult:
    """What an export holds: images and boxes by split; and how many shards were written now.

    Attributes:
        crowds: boxes that were left out, as the form has no crowds.
        crowd_images: images that have crowds and no object.
        crowd_labels: labels that have crowds and no object.
    """

    images: dict[str, int]
    boxes: dict[str, int]
    shards: int
    written: int
    interrupted: bool
    labels: tuple[str, ...]
    missing: int
    crowds: int = 0
    crowd_images: int = 0
    crowd_labels: tuple[str, ...] = ()


def export_dataset(
    spec: ExportSpec, report: Callable[[int, int], None] | None = None
) -> ExportResult:
    """Write a dataset in another form, or what is missing of it.

    Args:
        report: called with how many shards are done, and how many there are.

    Raises:
        InputError: there is no such dataset, or the folder holds something else.
    """
    export, writer = opened(spec), load_writer(spec.form)
    refuse_other(export)
    with Lock(open_store(spec.folder)):
        for place in ("", DONE, "annotations", "data", "ImageSets/Main"):
            for path in (spec.folder / place).glob(f".*{TEMPORARY}"):  # what a killed export left
                path.unlink(missing_ok=True)
        write_text(spec.folder / RECORD, json.dumps(record(export), indent=1) + "\n")
        left = [number for number in export.shards if not is_done(export, number)]
        try:
            write_shards(export, writer, left, report or (lambda done, total: None))
            writer.finish(export)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
    written = sum(is_done(export, number) for number in left)
    return counted(export, writer, written, interrupted)


def opened(spec: ExportSpec) -> Export:
    """The dataset of an export.

    Raises:
        InputError: it is none, or damaged, or a category is to be renamed that it lacks; or an argument is wrong.
    """
    if not 0 <= spec.val <= 1:
        raise InputError(f"command line: --val: {spec.val:g} must be from 0 to 1")
    if spec.workers < 1:
        raise InputError(f"command line: --workers: {spec.workers} must be at least 1")
    store, folder = open_store(spec.source), spec.folder.resolve()
    source = store.root.resolve() if isinstance(store, LocalStore) else None
    if source is not None and (
        source == folder or source in folder.parents or folder in source.parents
    ):
        raise InputError(
            f"{spec.folder}: lies in the dataset {spec.source}, or around it; give another folder"
        )
    info = read_info(store)
    if info is None:
        raise InputError(f"{spec.source}: no dataset here (dataset.json is missing or damaged)")
    try:
        labels = labels_of(info.category_ids, spec.renamed)
    except ValueError as error:
        raise InputError(f"command line: --label: {error}") from None
    return Export(spec, store, info, labels, sound_shards(store))


def load_writer(form: str) -> Writer:
    """Import the module that writes a format."""
    module: Any = import_module(str(writable_formats()[form].writer))
    return module


def record(export: Export) -> dict[str, Any]:
    """What export.json says: what the folder holds, and how it was made."""
    job = hashlib.sha256(json.dumps(export.info.fingerprint, sort_keys=True).encode()).hexdigest()
    made = {"form": export.spec.form, "val": export.spec.val, "labels": list(export.labels.names)}
    return {"name": export.info.name, "job": job, **made, "renamed": dict(export.spec.renamed)}


def refuse_other(export: Export) -> None:
    """Raise InputError if the folder holds something else, or an export that was made in another way."""
    folder = export.folder
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        there = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        there = None
    if not isinstance(there, dict):
        raise InputError(
            f"{folder}: is not empty, and no export of ours (no readable {RECORD}); give another folder"
        )
    here = record(export)
    changed = [
        f"{key}: was {there.get(key)!r}, is {here[key]!r}"
        for key in here
        if there.get(key) != here[key]
    ]
    if changed:
        raise InputError(
            f"{folder}: holds another export: {'; '.join(changed)}; give another folder"
        )


def is_done(export: Export, number: int) -> bool:
    """Whether a shard is in the export, with the bytes that it has now."""
    try:
        return (export.folder / DONE / shard_name(number)).read_text() == export.shards[
            number
        ].sha256
    except OSError:
        return False


def write_shards(
    export: Export, writer: Writer, numbers: list[int], report: Callable[[int, int], None]
) -> None:
    """Write shards, several at the same time; the first that fails ends it, and those begun are waited for."""
    done, total = len(export.shards) - len(numbers), len(export.shards)
    report(done, total)

    def write(number: int) -> None:
        writer.write_shard(export, number)
        write_text(export.folder / DONE / shard_name(number), export.shards[number].sha256)

    with ThreadPoolExecutor(export.spec.workers) as pool:
        try:
            for future in as_completed([pool.submit(write, number) for number in numbers]):
                future.result()
                done += 1
                report(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def counted(export: Export, writer: Writer, written: int, interrupted: bool) -> ExportResult:
    images, boxes = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    crowds = crowd_images = 0
    seen, objects = set[str](), set[str]()
    for number in export.shards:
        if is_done(export, number):
            for row in read_rows(export.store, number):
                images[export.split(row)] += 1
                left_out = 0 if writer.CROWDS else sum(map(bool, row["iscrowd"]))
                boxes[export.split(row)] += row["n_boxes"] - left_out
                crowds += left_out
                crowd_images += bool(row["n_boxes"]) and all(row["iscrowd"])
                pairs = [
                    (export.labels.name(name), crowd)
                    for name, crowd in zip(row["category"], row["iscrowd"], strict=True)
                ]
                seen |= {label for label, _ in pairs}
                objects |= {label for label, crowd in pairs if not crowd}
    missing = export.info.asked - sum(marker.count for marker in export.shards.values())
    told = (export.labels.names, missing, crowds, crowd_images, tuple(sorted(seen - objects)))
    return ExportResult(images, boxes, len(export.shards), written, interrupted, *told)


# What several forms need:


def pictures(
    export: Export, number: int
) -> Iterator[tuple[str, dict[str, Any], list[Annotation], bytes]]:
    """Split, row, annotations (category renamed) and picture of each sample of a shard."""
    for row, data in read_samples(export.store, number):
        yield export.split(row), row, annotations(export, row), data


def annotations(export: Export, row: dict[str, Any]) -> list[Annotation]:
    """The annotations of a row, each with the name and id that its class has in the export.

    Raises:
        InputError: the dataset has no such category.
    """
    ids, found = export.ids, annotations_of(row)
    names = [export.labels.name(annotation.category) for annotation in found]
    if unknown := sorted(set(names) - set(ids)):
        raise InputError(
            f"{export.spec.source}: sample {row['key']}: {unknown} are no categories of its dataset.json"
        )
    return [
        replace(a, category=name, category_id=ids[name])
        for a, name in zip(found, names, strict=True)
    ]


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; that it lasts through a power cut is not asked (the export can be made again)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    temporary.write_bytes(data)
    temporary.replace(path)


def write_lines(path: Path, lines: Iterator[str]) -> None:
    """Replace a text file by these lines, one at a time."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def picture_name(row: dict[str, Any]) -> str:
    return f"{row['key']}.{row['image_format']}"


def printable(text: str) -> str:
    """A name as one line of a text file."""
    return re.sub(r"\s+", " ", text)
