"""`synthgen repair`: shards that `check` finds bad are made again, with the bytes that they had.

If the tar of a shard is intact, its table and marker are made from it. Any other shard is generated
again with the numerics that its marker records. Before it is committed, its bytes are compared with
the digests that are left of the old shard.
"""

import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter

from synthgen.config.job import Job
from synthgen.config.loading import parse_job
from synthgen.dataset.check import check_dataset, examine_dataset
from synthgen.dataset.info import DatasetInfo, list_changes, read_info, write_info
from synthgen.dataset.marker import (
    TAR,
    Marker,
    format_shard_file,
    format_shard_name,
    read_stored_marker,
    scan_markers,
)
from synthgen.dataset.shard import DamagedShardError, StagedShard, stage
from synthgen.dataset.shard_reader import parse_samples
from synthgen.dataset.versions import read_versions
from synthgen.engine.driver import RunResult, Work, WorkState, drive
from synthgen.engine.generation import (
    FAILURES,
    build_dataset_info,
    describe_version_difference,
    restore_former_defaults,
)
from synthgen.engine.pool import find_local_device
from synthgen.engine.run_log import collect_facts, log_to_output
from synthgen.engine.worker import Progress, RejectedImageError, Worker
from synthgen.errors import InputError
from synthgen.pipelines.base import Numerics
from synthgen.storage.base import Store
from synthgen.storage.local import hash_open_file
from synthgen.yamlfile import ConfigError, parse_yaml

log = logging.getLogger(__name__)

NUMERICS = TypeAdapter(Numerics)
CONTENT_FIELDS = (
    "count",
    "first_index",
    "bytes",
    "sha256",
    "md5",
    "parquet_bytes",
    "parquet_sha256",
)
"""The fields of a marker that describe the files of its shard."""

Report = Callable[[int, int], object]
Settings = tuple[str, int, int, int, str, bool]
"""Device, batch size, chunk, threads and number format of a worker, and whether it uses tiles.

The number format may be empty.
"""


@dataclass
class RepairResult:
    """What a repair did.

    Attributes:
        restored: shards that have their former bytes again.
        changed: shards that were made again with other bytes because the user accepts them, and why
            their bytes differ.
        unknown: shards that were made again without anything to compare their bytes with.
        left: shards that are not repaired, and why.
        finalized: the files beside the shards were written again.
        faults: what `check` still finds.
    """

    restored: list[int] = field(default_factory=list)
    changed: dict[int, str] = field(default_factory=dict)
    unknown: list[int] = field(default_factory=list)
    left: dict[int, str] = field(default_factory=dict)
    finalized: bool = False
    faults: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return what was done as lines of text for the user."""
        lines = []
        for number in self.restored:
            lines.append(f"shards/{format_shard_name(number)}: restored, byte by byte")
        for number in self.unknown:
            lines.append(
                f"shards/{format_shard_name(number)}: made again; "
                "nothing was left to compare its bytes with"
            )
        for number, reason in self.changed.items():
            lines.append(f"shards/{format_shard_name(number)}: made again; {reason}")
        for number, reason in self.left.items():
            lines.append(f"shards/{format_shard_name(number)}: not repaired: {reason}")
        if self.finalized:
            lines.append("annotations, manifest, index, card: written again")
        return lines + self.faults


def repair(store: Store, accept: bool = False, report: Report | None = None) -> RepairResult:
    """Make bad shards again, and the files beside the shards if anything was wrong.

    Args:
        accept: also commit shards whose bytes differ from the former ones; otherwise such shards
            are not repaired.
        report: called with the number of images generated so far, and the number of all.

    Raises:
        InputError: there is no dataset, or its job is not the one of its shards.
        LockedError: a run works on it.
    """
    info, job, no_job_reason = identify(store)
    work = Repair(store, info, job, no_job_reason, accept, report)
    drive(work)
    if not work.is_sound:
        work.done.faults = check_dataset(store)[0]
    return work.done


def find_bad_shards(shards: Mapping[int, int | None], job: Job | None) -> list[int]:
    """Return the shards that have faults or another number of images than the job says.

    Args:
        shards: `Examined.shards`.
    """
    if job is None:
        return [number for number, count in shards.items() if count is None]
    return [
        number for number in range(job.shards) if shards.get(number) != job.images_in_shard(number)
    ]


def identify(store: Store) -> tuple[DatasetInfo, Job | None, str]:
    """Return what dataset.json says or should say, the job, and why there is none if there is none.

    Raises:
        InputError: neither dataset.json nor job.yaml says what the dataset is, or they differ.
    """
    info = read_info(store)
    if info is not None and info.sources:
        return info, None, _no_job_reason("merged", "merge its sources")
    if info is not None and info.imported:
        return info, None, _no_job_reason(f"imported ({info.imported})", "import its source")
    try:
        job = read_job(store)
    except ConfigError as error:
        if info is None:
            raise InputError(
                f"{store}: no dataset here: dataset.json is missing or damaged, and so is job.yaml"
            ) from error
        hint = "`synthgen run` with the dataset's job writes job.yaml again"
        return info, None, f"{error.problems[0]}; {hint}"
    job_info = build_dataset_info(job)
    if info is not None:
        job, job_info, _ = restore_former_defaults(job, job_info, info)
        changed = list_changes(info, job_info)
        if changed:
            raise InputError(
                f"{store}: its job.yaml and the files that it names are not what its shards are "
                f"of: {'; '.join(changed)}"
            )
    fingerprint = json.loads(json.dumps(job_info.fingerprint))
    return replace(job_info, fingerprint=fingerprint), job, ""


def _no_job_reason(origin: str, remedy: str) -> str:
    return (
        f"the dataset was {origin}, so its images cannot be generated again; "
        f"remove the shard's files and {remedy} again"
    )


def read_job(store: Store) -> Job:
    """Return the job that job.yaml holds.

    Raises:
        ConfigError: it holds none.
    """
    path = store.path("job.yaml")
    try:
        text = store.read("job.yaml").decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None
    return parse_job(parse_yaml(text, path), path)


@dataclass(frozen=True)
class OldShard:
    """What is known of a bad shard as it was before.

    Attributes:
        marker: its marker, if it can be read.
        digests: digests of its tar, from the marker and from index.json. One that matches is
            enough, because the marker itself may be damaged.
    """

    marker: Marker | None
    digests: frozenset[str]

    @classmethod
    def read(cls, store: Store, number: int, job: Job | None) -> "OldShard":
        """Read what is left of a shard."""
        marker = read_stored_marker(store, number)
        if marker is not None and job is not None and marker.count != job.images_in_shard(number):
            return cls(None, frozenset())  # the new shard has another number of images
        digests = read_listed_digests(store, number)
        if marker is not None:
            digests |= {marker.sha256, marker.md5}
        return cls(marker, frozenset(digests))

    def has_digest(self, *digests: str) -> bool:
        """Return whether one of these is a digest of the old tar."""
        return not self.digests.isdisjoint(digests)

    def equals(self, shard: StagedShard) -> bool:
        """Return whether the tar of a new shard has the bytes of the old one."""
        return self.has_digest(shard.marker.sha256, shard.marker.md5)

    def numerics(self, job: Job) -> Numerics:
        """Return the numerics of the marker, or else those of the job on this machine."""
        recorded = None
        if self.marker is not None and self.marker.numerics:
            try:
                recorded = NUMERICS.validate_python(self.marker.numerics)
            except ValueError:
                recorded = None
        if recorded is not None and _is_usable(recorded):
            return recorded
        device = "cpu" if job.gpus == 0 else find_local_device(job)
        dtype = job.pipeline.choose_dtype(device)
        return Numerics(
            job.batch_size, job.first_chunk, job.threads, device, dtype, read_versions()
        )

    def restore_marker(self, shard: StagedShard) -> StagedShard:
        """Return a new shard with the old marker, if the markers describe the same files."""
        if self.marker is None:
            return shard
        for name in CONTENT_FIELDS:
            if getattr(self.marker, name) != getattr(shard.marker, name):
                return shard
        return replace(shard, marker=self.marker)


def _is_usable(numerics: Numerics) -> bool:
    """Return whether a worker can run with numerics that a marker records."""
    smallest = min(numerics.batch_size, numerics.chunk, numerics.threads)
    known_dtype = numerics.dtype in (None, "float32", "float16", "bfloat16")
    return smallest >= 1 and numerics.device in ("cpu", "cuda") and known_dtype


def read_listed_digests(store: Store, number: int) -> set[str]:
    """Return the digests of a shard's tar in index.json."""
    url = format_shard_file(number, TAR)
    digests = set()
    try:
        for entry in json.loads(store.read("index.json"))["shardlist"]:
            if entry["url"] == url:
                digests.add(str(entry["md5sum"]))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()
    return digests


def describe_numerics_difference(old: Numerics, new: Numerics) -> str:
    """Return why a shard that was generated again has other bytes, as far as the numerics say."""
    before = {"device": old.device, "chunk": old.chunk, **old.versions}
    now = {"device": new.device, "chunk": new.chunk, **new.versions}
    if old.hardware:
        before["hardware"] = old.hardware
        now["hardware"] = new.hardware
    if old.dtype is not None:
        before["dtype"] = old.dtype
        now["dtype"] = str(new.dtype)
    differences = []
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            differences.append(f"{key} {before.get(key)} then, {now.get(key)} now")
    if not differences:
        differences.append("the same versions, but another processor or build")
    return f"its bytes differ from the old ones: {'; '.join(differences)}"


class Repair(Work):
    """The repair of a dataset: of its bad shards, one after the other.

    Args:
        job: the job of the dataset; None if there is none, and no shard can be generated again.
        no_job_reason: why there is no job.
        accept: also commit shards whose bytes differ from the old ones.
        report: called with the number of images generated so far, and the number of all.

    Attributes:
        is_sound: nothing was wrong with the dataset.
    """

    resumable = False

    def __init__(
        self,
        store: Store,
        info: DatasetInfo,
        job: Job | None,
        no_job_reason: str,
        accept: bool,
        report: Report | None,
    ) -> None:
        super().__init__(store, info)
        self.job = job
        self.no_job_reason = no_job_reason
        self.accept = accept
        self.report = report
        self.done = RepairResult()
        self.is_sound = False

    def open(self) -> AbstractContextManager[None]:
        return log_to_output(self.store)

    def plan(self) -> list[int]:
        examined = examine_dataset(self.store, self.info)
        bad = find_bad_shards(examined.shards, self.job)
        self.is_sound = not bad and not examined.faults and read_info(self.store) is not None
        return bad

    def begin(self, shards: list[int]) -> None:
        """Write nothing: the dataset exists."""

    def make(self, shards: Iterable[int]) -> Generator[StagedShard, None, None]:
        """Make every shard that can be made, and record why the others cannot."""
        old_shards = {number: OldShard.read(self.store, number, self.job) for number in shards}
        without_tar: dict[int, OldShard] = {}
        for number, old in old_shards.items():
            shard = self.restore_from_tar(number, old)
            if shard is None:
                without_tar[number] = old
            else:
                yield from self.accept_shard(number, shard, old, "")
        if self.job is None:
            self.done.left = dict.fromkeys(without_tar, self.no_job_reason)
        else:
            yield from self.generate(self.job, without_tar)

    def finalise(self, state: WorkState) -> dict[str, Any]:
        if self.is_sound or self.done.left:
            return {}
        if read_info(self.store) is None:
            write_info(self.store, self.info, {"images": 0, "complete": False})
        self.store.delete(FAILURES)
        self.done.finalized = True
        return super().finalise(state)

    def end(self, state: WorkState, seconds: float) -> RunResult:
        if not self.is_sound:
            done = self.done
            figures = collect_facts(
                restored=done.restored,
                changed=list(done.changed),
                unknown=done.unknown,
                left=list(done.left),
            )
            log.info("repair ended", extra=figures)
        return super().end(state, seconds)

    def restore_from_tar(self, number: int, old: OldShard) -> StagedShard | None:
        """Make table and marker from a tar with its old bytes; return None if there is none."""
        name = format_shard_file(number, TAR)
        try:
            with self.store.open(name) as tar:
                if not old.has_digest(hash_open_file(tar), hash_open_file(tar, "md5")):
                    return None
                samples = list(parse_samples(tar, name))
        except (OSError, DamagedShardError):
            return None
        if not samples:
            return None
        if old.marker is None:
            shard = stage(self.store, number, samples, {}, 0.0, 0)
        else:
            marker = old.marker
            shard = stage(
                self.store, number, samples, marker.numerics, marker.seconds, marker.attempts
            )
        return shard if old.equals(shard) else None

    def generate(self, job: Job, old_shards: dict[int, OldShard]) -> Iterator[StagedShard]:
        """Generate shards again; one worker generates all those with the same settings."""
        numerics = {number: old.numerics(job) for number, old in old_shards.items()}
        groups: dict[Settings, list[int]] = {}
        for number in sorted(old_shards):
            old = numerics[number]
            dtype = old.dtype or job.pipeline.former_dtype(old.device) or ""
            settings = (old.device, old.batch_size, old.chunk, old.threads, dtype, old.tiled)
            groups.setdefault(settings, []).append(number)
        images = 0
        total = sum(job.images_in_shard(number) for number in old_shards)
        for settings in sorted(groups):
            group = groups[settings]
            device, batch_size, chunk, threads, dtype, tiled = settings
            local = "cpu" if device == "cpu" else find_local_device(job)
            if local != device and not self.accept:
                reason = (
                    "it was generated on a GPU, and this machine has none: its bytes would differ"
                )
                self.done.left |= dict.fromkeys(group, reason)
                continue
            overrides: dict[str, Any] = {
                "batch_size": batch_size,
                "chunk": chunk,
                "threads": threads,
            }
            if dtype and local == device:
                overrides["pipeline"] = job.pipeline.model_copy(update={"dtype": dtype})
            worker = Worker(job.model_copy(update=overrides), self.store, local, tiled)
            for number in group:
                try:
                    for event in worker.make_shard(number):
                        if isinstance(event, StagedShard):
                            reason = describe_numerics_difference(numerics[number], worker.numerics)
                            yield from self.accept_shard(number, event, old_shards[number], reason)
                        if isinstance(event, Progress):
                            images += event.images
                        if self.report:
                            self.report(images, total)
                except RejectedImageError as error:
                    self.done.left[number] = str(error)

    @cached_property
    def version_fault(self) -> str:
        """Why a shard with nothing to compare with does not fit the others; empty if it does."""
        if self.job is None:
            return ""
        for _, marker in scan_markers(self.store):
            difference = describe_version_difference(marker, self.job)
            if difference:
                return (
                    "nothing is left to compare its bytes with, and other shards were generated "
                    f"with other package versions: {difference}"
                )
        return ""

    def accept_shard(
        self, number: int, shard: StagedShard, old: OldShard, difference: str
    ) -> Iterator[StagedShard]:
        """Yield a new shard to be committed, or record why the old one is not repaired.

        Args:
            difference: why its bytes may differ from those of the old one.
        """
        fault = difference if old.digests else self.version_fault
        if old.equals(shard):
            self.done.restored.append(number)
            shard = old.restore_marker(shard)
        elif not fault:
            self.done.unknown.append(number)
        elif self.accept:
            self.done.changed[number] = fault
        else:
            self.done.left[number] = fault
            return
        yield shard
