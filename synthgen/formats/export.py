"""`synthgen export`: write a dataset in the format of another program, one folder for each format.

Shards are exported one by one, several at a time. An exported shard leaves a mark, so that an
interrupted export is resumed, and the export of a dataset that has grown adds the new shards.
Files that cover all shards are written last, from the tables of the shards.
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
from synthgen.dataset.classes import Labels, build_labels
from synthgen.dataset.info import DatasetInfo, read_info
from synthgen.dataset.marker import Marker, format_shard_name
from synthgen.dataset.sample import read_annotations
from synthgen.dataset.shard import read_rows
from synthgen.dataset.shard_reader import SPLITS, read_samples, read_sound_markers, split_of
from synthgen.errors import InputError
from synthgen.formats.base import list_writable_formats
from synthgen.storage.base import TEMPORARY, Store
from synthgen.storage.local import LocalStore, replace_atomically, write_text
from synthgen.storage.location import open_store
from synthgen.storage.lock import Lock

RECORD_FILE = "export.json"
MARKS_FOLDER = ".export"
WRITTEN_FOLDERS = ("", MARKS_FOLDER, "annotations", "data", "ImageSets/Main")


@dataclass(frozen=True)
class ExportSpec:
    """A dataset, a format and a folder to export to.

    Attributes:
        source: the folder or the URL of a dataset.
        form: the name of a format that can be written
            (`synthgen.formats.base.list_writable_formats`).
        folder: the folder to write.
        val: the share of the samples in the split "val", 0 to 1.
        renamed: the name in the export for each category that is renamed.
        workers: the number of shards that are exported at the same time.

    Examples:
        >>> spec = ExportSpec("out/pasted", "yolo", Path("out/yolo"), val=0.2)
    """

    source: str | Path
    form: str
    folder: Path
    val: float = 0.1
    renamed: Mapping[str, str] = field(default_factory=dict)
    workers: int = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Export:
    """An open export, which writers work with: the dataset, its classes and the folder."""

    spec: ExportSpec
    store: Store
    info: DatasetInfo
    labels: Labels
    shards: Mapping[int, Marker]

    @property
    def folder(self) -> Path:
        """The folder to write."""
        return self.spec.folder

    def choose_split(self, row: dict[str, Any]) -> str:
        """Return the split of a sample."""
        return split_of(row["key"], self.spec.val)

    def read_rows(self, split: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the rows of all shards in order, or those of a split.

        Only the rows of one shard are in memory at a time.
        """
        for number in self.shards:
            for row in read_rows(self.store, number):
                if split is None or split == self.choose_split(row):
                    yield row

    @cached_property
    def ids(self) -> dict[str, int]:
        """The category id of each class for COCO.

        It is the id of the category with that name, or of the first category renamed to it.
        """

        def is_renamed(item: tuple[str, int]) -> bool:
            category, _ = item
            return category not in self.labels.names

        ids: dict[str, int] = {}
        for category, category_id in sorted(self.info.category_ids.items(), key=is_renamed):
            ids.setdefault(self.labels.name(category), category_id)
        return ids


class Writer(Protocol):
    """The content of a module that writes a format.

    Attributes:
        CROWDS: whether the format has crowds; otherwise they are left out.
    """

    CROWDS: bool

    def write_shard(self, export: Export, number: int) -> None:
        """Write the files of a single shard; writing them again changes nothing."""

    def finish(self, export: Export) -> None:
        """Write the files that cover all shards."""


@dataclass(frozen=True)
class ExportResult:
    """The content of an export: images and boxes of each split, and the shards written now.

    Attributes:
        missing: the number of images that the dataset lacks.
        crowds: the number of boxes that were left out because the format has no crowds.
        crowd_images: the number of images that have crowds and no object.
        crowd_labels: the labels that have crowds and no object.
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
    """Write a dataset in another format, or the shards that are still missing.

    Args:
        report: called with the number of exported shards and the number of all shards.

    Raises:
        InputError: there is no such dataset, or the folder contains something else.

    Examples:
        >>> result = export_dataset(ExportSpec("out/pasted", "coco", Path("out/coco")))
        >>> sum(result.boxes.values())
        200
    """
    export = open_export(spec)
    writer = load_writer(spec.form)
    check_folder(export)
    with Lock(open_store(spec.folder)):
        _remove_temporary_files(spec.folder)
        write_text(spec.folder / RECORD_FILE, json.dumps(make_record(export), indent=1) + "\n")
        pending = [number for number in export.shards if not is_exported(export, number)]
        try:
            write_shards(export, writer, pending, report or (lambda done, total: None))
            writer.finish(export)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
    written = sum(is_exported(export, number) for number in pending)
    return count_exported(export, writer, written, interrupted)


def open_export(spec: ExportSpec) -> Export:
    """Open the dataset of an export.

    Raises:
        InputError: there is no dataset or it is damaged, it lacks a category to be renamed, or
            an argument is wrong.
    """
    if not 0 <= spec.val <= 1:
        raise InputError(f"command line: --val: {spec.val:g} must be from 0 to 1")
    if spec.workers < 1:
        raise InputError(f"command line: --workers: {spec.workers} must be at least 1")
    store = open_store(spec.source)
    if isinstance(store, LocalStore):
        folder = spec.folder.resolve()
        source = store.root.resolve()
        if folder.is_relative_to(source) or source.is_relative_to(folder):
            raise InputError(
                f"{spec.folder}: lies in the dataset {spec.source}, or around it; "
                "give another folder"
            )
    info = read_info(store)
    if info is None:
        raise InputError(f"{spec.source}: no dataset here (dataset.json is missing or damaged)")
    try:
        labels = build_labels(info.category_ids, spec.renamed)
    except ValueError as error:
        raise InputError(f"command line: --label: {error}") from None
    return Export(spec, store, info, labels, read_sound_markers(store))


def load_writer(format_name: str) -> Writer:
    """Import the module that writes a format."""
    module: Any = import_module(str(list_writable_formats()[format_name].writer))
    return module


def _remove_temporary_files(folder: Path) -> None:
    """Remove what a killed export left in the folders that exports write to."""
    for name in WRITTEN_FOLDERS:
        for path in (folder / name).glob(f".*{TEMPORARY}"):
            path.unlink(missing_ok=True)


def make_record(export: Export) -> dict[str, Any]:
    """Return the content of export.json: which dataset was exported, and with which settings."""
    fingerprint = json.dumps(export.info.fingerprint, sort_keys=True)
    return {
        "name": export.info.name,
        "job": hashlib.sha256(fingerprint.encode()).hexdigest(),
        "form": export.spec.form,
        "val": export.spec.val,
        "labels": list(export.labels.names),
        "renamed": dict(export.spec.renamed),
    }


def check_folder(export: Export) -> None:
    """Raise InputError if the folder contains something else or an export with other settings."""
    folder = export.folder
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        existing = json.loads((folder / RECORD_FILE).read_text())
    except (OSError, ValueError):
        existing = None
    if not isinstance(existing, dict):
        raise InputError(
            f"{folder}: is not empty, and not an export of synthgen "
            f"(no readable {RECORD_FILE}); give another folder"
        )
    changes: list[str] = []
    for key, value in make_record(export).items():
        if existing.get(key) != value:
            changes.append(f"{key}: was {existing.get(key)!r}, is {value!r}")
    if changes:
        raise InputError(
            f"{folder}: holds another export: {'; '.join(changes)}; give another folder"
        )


def is_exported(export: Export, number: int) -> bool:
    """Return whether the current bytes of a shard are in the export."""
    mark = export.folder / MARKS_FOLDER / format_shard_name(number)
    try:
        return mark.read_text() == export.shards[number].sha256
    except OSError:
        return False


def write_shards(
    export: Export, writer: Writer, numbers: list[int], report: Callable[[int, int], None]
) -> None:
    """Write shards, several at the same time.

    The first error ends the export after the shards that were already started.
    """
    total = len(export.shards)
    done = total - len(numbers)
    report(done, total)

    def write(number: int) -> None:
        writer.write_shard(export, number)
        write_text(
            export.folder / MARKS_FOLDER / format_shard_name(number), export.shards[number].sha256
        )

    with ThreadPoolExecutor(export.spec.workers) as pool:
        try:
            futures = [pool.submit(write, number) for number in numbers]
            for future in as_completed(futures):
                future.result()
                done += 1
                report(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def count_exported(export: Export, writer: Writer, written: int, interrupted: bool) -> ExportResult:
    """Return the result of an export by counting the rows of all exported shards."""
    images = dict.fromkeys(SPLITS, 0)
    boxes = dict.fromkeys(SPLITS, 0)
    crowds = 0
    crowd_images = 0
    used_labels: set[str] = set()
    object_labels: set[str] = set()
    for number in export.shards:
        if not is_exported(export, number):
            continue
        for row in read_rows(export.store, number):
            split = export.choose_split(row)
            left_out = 0 if writer.CROWDS else sum(map(bool, row["iscrowd"]))
            images[split] += 1
            boxes[split] += row["n_boxes"] - left_out
            crowds += left_out
            crowd_images += bool(row["n_boxes"]) and all(row["iscrowd"])
            for category, iscrowd in zip(row["category"], row["iscrowd"], strict=True):
                label = export.labels.name(category)
                used_labels.add(label)
                if not iscrowd:
                    object_labels.add(label)
    present = sum(marker.count for marker in export.shards.values())
    return ExportResult(
        images,
        boxes,
        shards=len(export.shards),
        written=written,
        interrupted=interrupted,
        labels=export.labels.names,
        missing=export.info.asked - present,
        crowds=crowds,
        crowd_images=crowd_images,
        crowd_labels=tuple(sorted(used_labels - object_labels)),
    )


# Functions that several writers use:


def read_images(
    export: Export, number: int
) -> Iterator[tuple[str, dict[str, Any], list[Annotation], bytes]]:
    """Yield split, row, annotations (with the classes of the export) and image of each sample."""
    for row, data in read_samples(export.store, number):
        yield export.choose_split(row), row, make_annotations(export, row), data


def make_annotations(export: Export, row: dict[str, Any]) -> list[Annotation]:
    """Return the annotations of a row, with the name and id of their class in the export.

    Raises:
        InputError: the dataset has no such category.
    """
    annotations: list[Annotation] = []
    unknown: set[str] = set()
    for annotation in read_annotations(row):
        name = export.labels.name(annotation.category)
        if name in export.ids:
            annotations.append(replace(annotation, category=name, category_id=export.ids[name]))
        else:
            unknown.add(name)
    if unknown:
        raise InputError(
            f"{export.spec.source}: sample {row['key']}: {sorted(unknown)} are no categories "
            "of its dataset.json"
        )
    return annotations


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically. It is not made durable, because an export can be repeated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    temporary.write_bytes(data)
    temporary.replace(path)


def write_lines(path: Path, lines: Iterator[str]) -> None:
    """Replace a text file, writing one line at a time."""
    with replace_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(f"{line}\n")


def name_image(row: dict[str, Any]) -> str:
    """Return the file name of a sample's image: its key and the suffix of its format."""
    return f"{row['key']}.{row['image_format']}"


def join_lines(text: str) -> str:
    """Return a text with every line end and run of spaces replaced by one space."""
    return re.sub(r"\s+", " ", text)
