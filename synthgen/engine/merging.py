"""`synthgen merge`: several datasets become one.

Their samples follow each other with new indices; images keep their bytes.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from synthgen.dataset.categories import COCO_IDS, find_given_category_ids
from synthgen.dataset.info import DatasetInfo, read_info, refuse_changed, refuse_foreign
from synthgen.dataset.marker import (
    TAR,
    Marker,
    format_shard_file,
    format_shard_name,
    read_marker,
    scan_markers,
)
from synthgen.dataset.sample import IMAGE_FORMATS, Sample, read_conditions
from synthgen.dataset.shard import read_rows
from synthgen.dataset.shard_reader import parse_samples
from synthgen.dataset.versions import DISTRIBUTION, PACKAGES, PIXEL_PACKAGES
from synthgen.engine.assembly import Assembly, Report
from synthgen.engine.driver import RunResult, drive
from synthgen.errors import InputError
from synthgen.storage.base import Store
from synthgen.storage.local import LocalStore, hash_open_file
from synthgen.storage.location import open_store

UNIFORM_NUMERICS = ("versions", "files")
"""Keys of a marker's numerics that have the same value in all shards of a sound dataset."""


@dataclass(frozen=True)
class MergeSpec:
    """What to merge, and into what.

    Attributes:
        sources: output folders or URLs, in the order of their samples.
        ids: category ids that take precedence over those of the sources and COCO's.
    """

    sources: tuple[str | Path, ...]
    out: str | Path
    ids: Mapping[str, int] = field(default_factory=dict)
    shard_size: int = 1000


@dataclass(frozen=True)
class MergeResult:
    """What a merge wrote.

    Attributes:
        differences: what the sources differ in, one line each.
    """

    info: DatasetInfo
    differences: list[str]
    written: RunResult


@dataclass(frozen=True)
class SourceDataset:
    """A dataset to merge.

    Attributes:
        name: the name of its folder; its whole path or URL if several folders have that name.
        first: the new index of its first sample.
        shards: the number, first index and count of each of its shards.
        content: a hash of the bytes of all its shards.
        numerics: the versions and model files that all its markers record.
        conditions: the names of the conditions of its samples.
    """

    store: Store
    name: str
    info: DatasetInfo
    first: int
    shards: tuple[tuple[int, int, int], ...]
    content: str
    numerics: dict[str, Any]
    conditions: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return what the dataset.json of the new dataset says of this source."""
        record = {
            "name": self.name,
            "first_index": self.first,
            "images": self.info.asked,
            "licence": self.info.licence,
            "content": self.content,
            **self.numerics,
        }
        origin = {
            "imported": self.info.imported,
            "sources": self.info.sources,
            "fingerprint": self.info.fingerprint,
        }
        for key, value in origin.items():
            if value:
                record[key] = value
        return record


def merge(spec: MergeSpec, overwrite: bool = False, report: Report | None = None) -> MergeResult:
    """Merge datasets, or continue an interrupted merge.

    Args:
        overwrite: remove the dataset that is in the output folder first.
        report: called with "written" and the number of samples that were written since.

    Raises:
        InputError: a source is not a complete dataset, or was generated with more than one model or
            version; categories clash; or the output folder holds something else.
    """
    store = open_store(spec.out)
    refuse_foreign(store)
    sources = read_sources(spec, store)
    ids = merge_ids(sources, spec.ids)
    info = build_info(spec, store, sources, ids)
    if not overwrite:
        refuse_changed(store, info)
    paths = [str(source) for source in spec.sources]
    job = {
        "version": 1,
        "name": info.name,
        "merge": {"sources": paths, "ids": ids},
        "output": {"shard_size": spec.shard_size},
    }
    work = Assembly(
        store,
        info,
        job,
        spec.shard_size,
        SampleReader(sources, ids),
        overwrite,
        report or (lambda action, samples: None),
    )
    return MergeResult(info, list_differences(sources), drive(work))


def read_sources(spec: MergeSpec, out: Store) -> list[SourceDataset]:
    """Return the datasets to merge.

    Raises:
        InputError: it names each one that cannot be merged, and why.
    """
    sources: list[SourceDataset] = []
    problems: list[str] = []
    out_place = resolve_place(out)
    stores = [open_store(path) for path in spec.sources]
    places = [resolve_place(store) for store in stores]
    folder_names = [choose_folder_name(place) for place in places]
    first = 0
    for path, store, place, name in zip(spec.sources, stores, places, folder_names, strict=True):
        if f"{place}/".startswith(f"{out_place}/") or f"{out_place}/".startswith(f"{place}/"):
            problems.append(
                f"{path}: lies over the output {spec.out}; give another folder to merge into"
            )
            continue
        is_unique = folder_names.count(name) == 1
        try:
            source = read_source(store, name if is_unique else str(path), first)
        except InputError as error:
            problems += error.problems
            continue
        sources.append(source)
        first += source.info.asked
    originals: dict[str, SourceDataset] = {}  # the keys are `content`
    for source in sources:
        original = originals.setdefault(source.content, source)
        if original is not source:
            problems.append(
                f"{source.store}: has the same samples as {original.store}; name it once"
            )
    if problems:
        raise InputError("\n".join(problems))
    return sources


def resolve_place(store: Store) -> str:
    """Return the folder or URL of a dataset in a form that can be compared."""
    return str(store.root.resolve() if isinstance(store, LocalStore) else store)


def choose_folder_name(place: str) -> str:
    """Return the last part of a path or URL."""
    return place.rpartition("/")[2]


def read_source(store: Store, name: str, first: int) -> SourceDataset:
    """Return one dataset to merge, as its markers describe it.

    Raises:
        InputError: it is no dataset, is incomplete, or was generated with more than one model or
            version.
    """
    info = read_info(store)
    if info is None:
        raise InputError(f"{store}: not a synthgen dataset (no readable dataset.json)")
    shards = []
    total = 0
    content = hashlib.sha256()
    reference: tuple[int, Marker] | None = None
    for number, marker in scan_markers(store):
        if marker.first_index != total:
            raise InputError(
                f"{store}: sample {total} is missing; `synthgen check` lists what is wrong, "
                "`synthgen repair` generates it again"
            )
        shards.append((number, total, marker.count))
        total += marker.count
        content.update(marker.sha256.encode())
        if marker.numerics:  # unknown for a shard that was restored from its tar alone
            if reference is None:
                reference = (number, marker)
            refuse_mixed(store, info, reference, (number, marker))
    if total != info.asked or not shards:
        raise InputError(
            f"{store}: has {total} of {info.asked} images; finish it first "
            "(synthgen run, or synthgen repair)"
        )
    numerics: dict[str, Any] = {}
    if reference is not None:
        for key, value in reference[1].numerics.items():
            if key in UNIFORM_NUMERICS:
                numerics[key] = value
    first_row = read_rows(store, shards[0][0])[0]
    return SourceDataset(
        store=store,
        name=name,
        info=info,
        first=first,
        shards=tuple(shards),
        content=content.hexdigest(),
        numerics=numerics,
        conditions=tuple(read_conditions(first_row)),
    )


def refuse_mixed(
    store: Store, info: DatasetInfo, reference: tuple[int, Marker], other: tuple[int, Marker]
) -> None:
    """Raise InputError if two shards of a dataset were generated with different models or versions.

    Only versions that pixels depend on count. A value that one of the shards does not record counts
    as the same: an older version of synthgen recorded less. Both shards are given by their number
    and their marker.
    """
    uses_paste = info.fingerprint.get("pipeline.method") == "paste"
    if uses_paste and "verify.verifier" not in info.fingerprint:
        ignored = {DISTRIBUTION, *PACKAGES}
    else:
        ignored = {DISTRIBUTION, "ray"}
    ignored -= set(PIXEL_PACKAGES)
    for kind in UNIFORM_NUMERICS:
        expected = as_mapping(reference[1].numerics.get(kind))
        values = as_mapping(other[1].numerics.get(kind))
        for key in sorted(expected.keys() & values.keys()):
            if expected[key] != values[key] and key not in ignored:
                raise InputError(
                    f"{store}: its shards were generated differently: "
                    f"shard {format_shard_name(reference[0])} with {key} {expected[key]}, "
                    f"shard {format_shard_name(other[0])} with {values[key]}; "
                    "one dataset must be of one model and one set of versions"
                )


def as_mapping(value: Any) -> dict[str, Any]:
    """Return a value that is a mapping, or an empty mapping."""
    return value if isinstance(value, dict) else {}


def merge_ids(sources: Sequence[SourceDataset], given: Mapping[str, int]) -> dict[str, int]:
    """Return one id for each category name.

    It is the given one, otherwise the one that all sources agree on, otherwise COCO's.

    Raises:
        InputError: it names each category that has different ids and is not COCO's, and those that
            share an id.
    """
    ids_by_source: dict[str, dict[str, int]] = {}  # category name to source name to id
    for source in sources:
        for name, number in source.info.category_ids.items():
            ids_by_source.setdefault(name, {})[source.name] = number
    names = list(ids_by_source)
    problems = []
    for name in given:
        if name not in ids_by_source:
            problems.append(
                f"--ids: {name!r} is in none of the datasets; they have {', '.join(names)}"
            )
    ids = {name: given[name] for name in names if name in given}
    for name, source_ids in ids_by_source.items():
        if name in ids:
            continue
        numbers = set(source_ids.values())
        if len(numbers) == 1:
            ids[name] = numbers.pop()
        elif name not in COCO_IDS:
            listed = ", ".join(f"{number} in {source}" for source, number in source_ids.items())
            problems.append(
                f"{name!r} has different ids: {listed}; say which: --ids {name!r}={max(numbers)}"
            )
    return find_given_category_ids(names, ids, problems)


def build_info(
    spec: MergeSpec, store: Store, sources: Sequence[SourceDataset], ids: dict[str, int]
) -> DatasetInfo:
    """Return the content of dataset.json for a merge."""
    fingerprint = {
        "merge.contents": [source.content for source in sources],
        "merge.ids": ids,
        "output.shard_size": spec.shard_size,
    }
    formats: set[str] = set()
    for source in sources:
        formats.update(source.info.image_format.split(";"))
    licences = dict.fromkeys(source.info.licence for source in sources)
    records = [source.record() for source in sources]
    return DatasetInfo(
        name=re.sub(r"[^\w.-]+", "-", choose_folder_name(resolve_place(store))) or "merged",
        asked=sum(source.info.asked for source in sources),
        fingerprint=fingerprint,
        category_ids=ids,
        image_format=";".join(name for name in IMAGE_FORMATS if name in formats),
        licence="; ".join(licences),
        sources=json.loads(json.dumps(records)),
    )


def list_differences(sources: Sequence[SourceDataset]) -> list[str]:
    """Return the models and versions in which the sources differ, one line a key."""
    numerics: dict[str, dict[str, Any]] = {}
    keys: set[str] = set()
    for source in sources:
        values: dict[str, Any] = {}
        for kind in UNIFORM_NUMERICS:
            values |= as_mapping(source.numerics.get(kind))
        numerics[source.name] = values
        keys.update(values)
    differences = []
    for key in sorted(keys):
        listed = [f"{name} {values.get(key)}" for name, values in numerics.items()]
        distinct = {str(values.get(key)) for values in numerics.values()}
        if len(distinct) > 1:
            differences.append(f"the sources differ in {key}: {', '.join(listed)}")
    return differences


class SampleReader:
    """A reader that returns the samples of the new dataset, one sample in memory at a time.

    Each shard of a source is read once: a shard whose samples belong to two output shards stays
    open between them.

    Args:
        ids: the category ids of the new dataset.
    """

    def __init__(self, sources: Sequence[SourceDataset], ids: Mapping[str, int]) -> None:
        self.sources = sources
        self.ids = ids
        self.conditions: dict[str, None] = {}
        for source in sources:
            self.conditions |= dict.fromkeys(source.conditions)
        self.open_start = -1  # the new index of the first sample of the open shard
        self.next_index = 0  # the new index of the first sample that was not read from it
        self.open_samples: Iterator[Sample] = iter(())

    def __call__(self, indices: range) -> Iterator[Sample]:
        """Yield the samples with these new indices, in order.

        Raises:
            InputError: a shard differs from its marker.
        """
        for source in self.sources:
            for number, first, count in source.shards:
                start = source.first + first
                stop = start + count
                if start < indices.stop and stop > indices.start:
                    yield from self._read_shard(source, number, start, stop, indices)

    def _read_shard(
        self, source: SourceDataset, number: int, start: int, stop: int, indices: range
    ) -> Iterator[Sample]:
        if start != self.open_start or self.next_index > indices.start:
            self.open_start = start
            self.next_index = start
            self.open_samples = read_shard_samples(source, number, self.ids, self.conditions)
        while self.next_index < min(stop, indices.stop):
            sample = next(self.open_samples, None)
            if sample is None:
                raise _changed_error(source, number)
            self.next_index += 1
            if sample.index in indices:
                yield sample
        if self.next_index == stop:
            self.open_start = -1
            if next(self.open_samples, None) is not None:
                raise _changed_error(source, number)


def _changed_error(source: SourceDataset, number: int) -> InputError:
    """Return the error for a shard that has another number of samples than at first."""
    tar = source.store.path(format_shard_file(number, TAR))
    return InputError(f"{tar}: has changed since the merge began; merge again")


def read_shard_samples(
    source: SourceDataset, number: int, ids: Mapping[str, int], conditions: Mapping[str, None]
) -> Iterator[Sample]:
    """Yield the samples of one shard as the new dataset has them.

    Args:
        ids: the category ids of the new dataset.
        conditions: the conditions of all samples of the new dataset.

    Raises:
        InputError: the bytes or the samples of the shard are not those of its marker.
    """
    store = source.store
    name = format_shard_file(number, TAR)
    tar = store.path(name)
    marker = read_marker(store, number)
    if marker is None:
        raise InputError(
            f"{tar}: differs from its marker; repair it first: synthgen repair {store}"
        )
    stop = marker.first_index + marker.count
    expected_index = marker.first_index
    with store.open(name) as file:
        if hash_open_file(file) != marker.sha256:
            raise InputError(
                f"{tar}: its bytes are not those that were committed; "
                f"repair it first: synthgen repair {store}"
            )
        for sample in parse_samples(file, tar):
            if sample.index == expected_index:
                expected_index += 1
                sample_conditions = {**conditions, **sample.conditions}
                yield replace(renumber(sample, source, ids), conditions=sample_conditions)
    if expected_index != stop:
        raise InputError(f"{tar}: its samples are not {marker.first_index} to {stop - 1}")


def renumber(sample: Sample, source: SourceDataset, ids: Mapping[str, int]) -> Sample:
    """Return a sample with its new index, its new category ids, and its origin.

    Raises:
        InputError: it has a category that its dataset.json does not name.
    """
    annotations = []
    for annotation in sample.annotations:
        if annotation.category not in ids:
            raise InputError(
                f"{source.store}: sample {sample.index}: category {annotation.category!r} "
                "is not among those of its dataset.json"
            )
        annotations.append(replace(annotation, category_id=ids[annotation.category]))
    origin = {"dataset": source.name, "index": sample.index, "key": sample.key}
    return replace(
        sample,
        index=source.first + sample.index,
        annotations=tuple(annotations),
        origin=origin,
    )
