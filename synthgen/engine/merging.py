"""`synthgen merge`: datasets become one, their samples one after the other, renumbered; pictures keep their bytes."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from synthgen.dataset.categories import COCO_IDS, told_ids
from synthgen.dataset.info import DatasetInfo, read_info, refuse_changed, refuse_foreign
from synthgen.dataset.marker import TAR, Marker, read_marker, scan, shard_file, shard_name
from synthgen.dataset.sample import IMAGE_FORMATS, Sample, conditions_of
from synthgen.dataset.shard import read_rows
from synthgen.dataset.shard_reader import parsed_samples
from synthgen.dataset.versions import ALWAYS, DISTRIBUTION, PACKAGES
from synthgen.engine.driver import Assembly, RunResult, drive
from synthgen.errors import InputError
from synthgen.storage.base import Store
from synthgen.storage.local import LocalStore, digest_of
from synthgen.storage.location import open_store

MADE_WITH = (
    "versions",
    "files",
)  # keys of a marker's numerics that are the same in all shards of a sound dataset


@dataclass(frozen=True)
class MergeSpec:
    """What to join, and where to.

    Attributes:
        sources: output folders or URLs, in the order of their samples.
        ids: category ids that go before those of the sources and COCO's.
    """

    sources: tuple[str | Path, ...]
    out: str | Path
    ids: Mapping[str, int] = field(default_factory=dict)
    shard_size: int = 1000


@dataclass(frozen=True)
class Merged:
    """What a merge made; `differences` are what the sources differ in, a line each."""

    info: DatasetInfo
    differences: list[str]
    written: RunResult


@dataclass(frozen=True)
class Part:
    """A dataset to be merged.

    Attributes:
        name: of its folder; all of its path or URL, if several folders have that name.
        first: index that its first sample gets.
        shards: number, first index and count of each of its shards.
        content: a hash of all its shards' bytes.
        made_with: versions and model files, as all its markers say.
        conditions: that its samples have.
    """

    store: Store
    name: str
    info: DatasetInfo
    first: int
    shards: tuple[tuple[int, int, int], ...]
    content: str
    made_with: dict[str, Any]
    conditions: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """What the new dataset says of it."""
        said = {
            "name": self.name,
            "first_index": self.first,
            "images": self.info.asked,
            "licence": self.info.licence,
        }
        origin = {
            "imported": self.info.imported,
            "sources": self.info.sources,
            "fingerprint": self.info.fingerprint,
        }
        return {
            **said,
            "content": self.content,
            **self.made_with,
            **{k: v for k, v in origin.items() if v},
        }


def merge(
    spec: MergeSpec, overwrite: bool = False, tell: Callable[[str, int], object] | None = None
) -> Merged:
    """Join datasets, or go on with it.

    Raises:
        InputError: a source is no whole dataset, or was made with more than one model or version; categories clash; or the
            output folder holds something else.
    """
    store = open_store(spec.out)
    refuse_foreign(store)
    parts = read_parts(spec, store)
    ids = merged_ids(parts, spec.ids)
    info = dataset_info(spec, store, parts, ids)
    if not overwrite:
        refuse_changed(store, info)
    job = {
        "version": 1,
        "name": info.name,
        "merge": {"sources": [str(source) for source in spec.sources], "ids": ids},
    }
    work = Assembly(
        store,
        info,
        {**job, "output": {"shard_size": spec.shard_size}},
        spec.shard_size,
        Samples(parts, ids),
        overwrite,
        tell or (lambda what, count: None),
    )
    return Merged(info, differences(parts), drive(work))


def read_parts(spec: MergeSpec, store: Store) -> list[Part]:
    """The sources.

    Raises:
        InputError: names each that cannot be merged, and why.
    """
    parts: list[Part] = []
    problems: list[str] = []
    out = place(store)
    stores = [open_store(source) for source in spec.sources]
    names = [folder_name(place(source)) for source in stores]
    for given, source, name in zip(spec.sources, stores, names, strict=True):
        here = place(source)
        if f"{here}/".startswith(f"{out}/") or f"{out}/".startswith(f"{here}/"):
            problems.append(
                f"{given}: lies over the output {spec.out}; give another folder to merge into"
            )
            continue
        try:
            first = parts[-1].first + parts[-1].info.asked if parts else 0
            parts.append(read_part(source, name if names.count(name) == 1 else str(given), first))
        except InputError as error:
            problems += error.problems
    for i, part in enumerate(parts):
        twin = next((other for other in parts[:i] if other.content == part.content), None)
        if twin is not None:
            problems.append(f"{part.store}: has the very samples of {twin.store}; name it once")
    if problems:
        raise InputError("\n".join(problems))
    return parts


def place(store: Store) -> str:
    """The folder or URL of a dataset, written in one way."""
    return str(store.root.resolve() if isinstance(store, LocalStore) else store)


def folder_name(place: str) -> str:
    return place.rpartition("/")[2]


def read_part(store: Store, name: str, first: int) -> Part:
    """One source, from its markers.

    Raises:
        InputError: it is no dataset, not whole, or made with more than one model or version.
    """
    info = read_info(store)
    if info is None:
        raise InputError(f"{store}: not a synthgen dataset (no readable dataset.json)")
    shards, total, content, made_with = [], 0, hashlib.sha256(), None
    for number, marker in scan(store):
        if marker.first_index != total:
            raise InputError(
                f"{store}: sample {total} is missing; `synthgen check` says more, `synthgen repair` makes it again"
            )
        shards.append((number, total, marker.count))
        total += marker.count
        content.update(marker.sha256.encode())
        if marker.numerics:  # of one that was restored from its tar alone they are not known
            made_with = made_with or (number, marker)
            refuse_mixed(store, info, *made_with, number, marker)
    if total != info.asked or not shards:
        raise InputError(
            f"{store}: has {total} of {info.asked} images; finish it first (synthgen run, or synthgen repair)"
        )
    told = (
        {key: value for key, value in made_with[1].numerics.items() if key in MADE_WITH}
        if made_with
        else {}
    )
    conditions = tuple(conditions_of(read_rows(store, shards[0][0])[0]))
    return Part(store, name, info, first, tuple(shards), content.hexdigest(), told, conditions)


def refuse_mixed(
    store: Store, info: DatasetInfo, first: int, one: Marker, number: int, other: Marker
) -> None:
    """Raise InputError if two shards of one dataset were made with different models, or versions that pixels depend on.

    What one of them does not tell counts as the same: an older version of synthgen recorded less.
    """
    network = (
        info.fingerprint.get("pipeline.method") != "paste" or "verify.verifier" in info.fingerprint
    )
    indifferent = (DISTRIBUTION, *PACKAGES) if not network else (DISTRIBUTION, "ray")
    for kind in MADE_WITH:
        a, b = (flat_part(marker.numerics.get(kind)) for marker in (one, other))
        for key in sorted(a.keys() & b.keys()):
            if a[key] != b[key] and (key in ALWAYS or key not in indifferent):
                raise InputError(
                    f"{store}: mixed inside: shard {shard_name(first)} was made with {key} {a.get(key)}, "
                    f"shard {shard_name(number)} with {b.get(key)}; one dataset must be of one model and one set of versions"
                )


def flat_part(value: Any) -> dict[str, Any]:
    """A mapping, or none."""
    return value if isinstance(value, dict) else {}


def merged_ids(parts: Sequence[Part], given: Mapping[str, int]) -> dict[str, int]:
    """One id for each name: the given one, else that which all sources agree on, else COCO's.

    Raises:
        InputError: names each that has different ids and is not COCO's, and those that share an id.
    """
    names = list(dict.fromkeys(name for part in parts for name in part.info.category_ids))
    problems = [
        f"--ids: {name!r} is in none of the datasets; they have {', '.join(names)}"
        for name in given
        if name not in names
    ]
    own = {name: given[name] for name in names if name in given}
    for name in names:
        found = {
            part.name: part.info.category_ids[name]
            for part in parts
            if name in part.info.category_ids
        }
        if name not in own and len(set(found.values())) == 1:
            own[name] = next(iter(found.values()))
        elif name not in own and name not in COCO_IDS:
            told = ", ".join(f"{number} in {source}" for source, number in found.items())
            problems.append(
                f"{name!r} has different ids: {told}; say which: --ids {name!r}={max(found.values())}"
            )
    return told_ids(names, own, problems)


def dataset_info(
    spec: MergeSpec, store: Store, parts: Sequence[Part], ids: dict[str, int]
) -> DatasetInfo:
    """What dataset.json keeps of a merge."""
    fingerprint = {
        "merge.contents": [part.content for part in parts],
        "merge.ids": ids,
        "output.shard_size": spec.shard_size,
    }
    found = {kind for part in parts for kind in part.info.image_format.split(";")}
    kinds = ";".join(kind for kind in IMAGE_FORMATS if kind in found)
    name = re.sub(r"[^\w.-]+", "-", folder_name(place(store))) or "merged"
    licences = "; ".join(dict.fromkeys(part.info.licence for part in parts))
    records = json.loads(json.dumps([part.record() for part in parts]))
    return DatasetInfo(
        name,
        sum(part.info.asked for part in parts),
        fingerprint,
        ids,
        kinds,
        licences,
        sources=records,
    )


def differences(parts: Sequence[Part]) -> list[str]:
    """What the sources differ in of model and versions, a line a key."""
    made = {
        part.name: {
            k: v for kind in MADE_WITH for k, v in flat_part(part.made_with.get(kind)).items()
        }
        for part in parts
    }
    keys = sorted({key for said in made.values() for key in said})
    return [
        f"the sources differ in {key}: {', '.join(f'{name} {said.get(key)}' for name, said in made.items())}"
        for key in keys
        if len({str(said.get(key)) for said in made.values()}) > 1
    ]


class Samples:
    """Gives the samples of the new dataset, and reads each source shard once, one sample in memory at a time.

    A shard that holds samples of two output shards stays open between them.
    """

    def __init__(self, parts: Sequence[Part], ids: Mapping[str, int]) -> None:
        self.parts, self.ids = parts, ids
        self.conditions = dict.fromkeys(name for part in parts for name in part.conditions)
        self.begin = -1  # of the shard that is open: the index that its first sample gets
        self.next = 0  # index of the first sample that was not read of it
        self.open: Iterator[Sample] = iter(())

    def __call__(self, indices: range) -> Iterator[Sample]:
        """The samples that get these indices, in order.

        Raises:
            InputError: a shard is not what its marker says.
        """
        for part in self.parts:
            for number, first, count in part.shards:
                begin = part.first + first
                if begin < indices.stop and begin + count > indices.start:
                    yield from self._of_shard(part, number, begin, begin + count, indices)

    def _of_shard(
        self, part: Part, number: int, begin: int, end: int, indices: range
    ) -> Iterator[Sample]:
        if begin != self.begin or self.next > indices.start:
            self.begin, self.next = begin, begin
            self.open = shard_samples(part, number, self.ids, self.conditions)
        while self.next < min(end, indices.stop):
            sample = next(self.open, None)
            self._refuse_changed(sample is not None, part, number)
            self.next += 1
            if sample is not None and sample.index in indices:
                yield sample
        if self.next == end:
            self.begin = -1
            self._refuse_changed(next(self.open, None) is None, part, number)

    def _refuse_changed(self, same: bool, part: Part, number: int) -> None:
        """Raise InputError if a shard has another number of samples than when the merge began."""
        if not same:
            raise InputError(
                f"{part.store.path(shard_file(number, TAR))}: has changed since the merge began; merge again"
            )


def shard_samples(
    part: Part, number: int, ids: Mapping[str, int], conditions: Mapping[str, None]
) -> Iterator[Sample]:
    """The samples of one shard as the new dataset has them.

    Raises:
        InputError: its bytes or its samples are not those that its marker says.
    """
    store, name = part.store, shard_file(number, TAR)
    tar, marker = store.path(name), read_marker(store, number)
    if marker is None:
        raise InputError(
            f"{tar}: differs from its marker; make it good first: synthgen repair {store}"
        )
    end = marker.first_index
    with store.open(name) as file:
        if digest_of(file) != marker.sha256:
            raise InputError(
                f"{tar}: its bytes are not those that were committed; make it good first: synthgen repair {store}"
            )
        for sample in parsed_samples(file, tar):
            if sample.index == end:
                end += 1
                yield replace(
                    renumbered(sample, part, ids), conditions={**conditions, **sample.conditions}
                )
    if end != marker.first_index + marker.count:
        raise InputError(
            f"{tar}: its samples are not {marker.first_index} to {marker.first_index + marker.count - 1}"
        )


def renumbered(sample: Sample, part: Part, ids: Mapping[str, int]) -> Sample:
    """A sample with its new index, the ids of its categories' names, and where it came from.

    Raises:
        InputError: it has a category that its dataset.json does not name.
    """
    unknown = [a.category for a in sample.annotations if a.category not in ids]
    if unknown:
        raise InputError(
            f"{part.store}: sample {sample.index}: category {unknown[0]!r} is not among those of its dataset.json"
        )
    annotations = tuple(replace(a, category_id=ids[a.category]) for a in sample.annotations)
    origin = {"dataset": part.name, "index": sample.index, "key": sample.key}
    return replace(sample, index=part.first + sample.index, annotations=annotations, origin=origin)
