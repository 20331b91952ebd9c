"""`synthgen repair`: what `check` finds bad is made again, with the bytes that it had.

A shard whose tar is whole gets its table and marker from it. Any other one is painted again, with the numerics that its marker
tells of; what comes out is held against the digests that are left of the old one before it is committed.
"""

import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from pydantic import TypeAdapter

from synthgen.config.job import Job
from synthgen.config.loading import job_of
from synthgen.dataset.check import check_dataset, examine
from synthgen.dataset.info import DatasetInfo, changes, read_info, write_info
from synthgen.dataset.marker import TAR, Marker, scan, shard_file, shard_name, stored_marker
from synthgen.dataset.shard import DamagedShardError, StagedShard, stage
from synthgen.dataset.shard_reader import parsed_samples
from synthgen.dataset.versions import versions
from synthgen.engine.driver import FAILURES, Made, RunResult, Work, as_begun, dataset_info, drive
from synthgen.engine.driver import difference as other_versions
from synthgen.engine.pool import local_device
from synthgen.engine.run_log import facts, journal
from synthgen.engine.worker import Progress, RejectedImageError, Worker
from synthgen.errors import InputError
from synthgen.pipelines.base import Numerics
from synthgen.storage.base import Store
from synthgen.storage.local import digest_of
from synthgen.yamlfile import ConfigError, parse_yaml

log = logging.getLogger(__name__)

NUMERICS = TypeAdapter(Numerics)
DIGESTS = ("count", "first_index", "bytes", "sha256", "md5", "parquet_bytes", "parquet_sha256")
Report = Callable[[int, int], object]


@dataclass
class Repaired:
    """What a repair did.

    Attributes:
        restored: shards that have the bytes again that they had.
        changed: shards that were made again with other bytes, and why they differ, because that was asked for.
        unknown: shards that were made again, of whose old bytes nothing was left to compare with.
        left: shards that are as bad as they were, and why.
        finalized: the files beside the shards were written anew.
        faults: what `check` still finds.
    """

    restored: list[int] = field(default_factory=list)
    changed: dict[int, str] = field(default_factory=dict)
    unknown: list[int] = field(default_factory=list)
    left: dict[int, str] = field(default_factory=dict)
    finalized: bool = False
    faults: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What was done, for a person."""
        lines = [f"shards/{shard_name(n)}: restored, byte by byte" for n in self.restored]
        lines += [
            f"shards/{shard_name(n)}: made again; nothing was left to compare its bytes with"
            for n in self.unknown
        ]
        lines += [f"shards/{shard_name(n)}: made again; {why}" for n, why in self.changed.items()]
        lines += [f"shards/{shard_name(n)}: left as it is: {why}" for n, why in self.left.items()]
        lines += ["annotations, manifest, index, card: written anew"] if self.finalized else []
        return lines + self.faults


def repair(store: Store, accept: bool = False, report: Report | None = None) -> Repaired:
    """Make bad shards again, and then the files beside the shards if anything was wrong.

    Args:
        accept: commit shards whose bytes differ from the old ones' too; else those are left as they are.
        report: called with how many images were painted so far, and of how many.

    Raises:
        InputError: there is no dataset, or its job is not the one that its shards are of.
        LockedError: a run works on it.
    """
    info, job, why_not = whose(store)
    work = Mending(store, info, job, why_not, accept, report)
    drive(work)
    if not work.sound:
        work.done.faults = check_dataset(store)[0]
    return work.done


def bad_shards(shards: Mapping[int, int | None], job: Job | None) -> list[int]:
    """Those with a fault, or that have not as many images as the job says.

    Args:
        shards: `Examined.shards`.
    """
    if job is None:
        return [number for number, count in shards.items() if count is None]
    return [number for number in range(job.shards) if shards.get(number) != job.shard_count(number)]


def whose(store: Store) -> tuple[DatasetInfo, Job | None, str]:
    """What the files are a dataset of; its job; and if there is none, why it cannot be painted again.

    Raises:
        InputError: neither dataset.json nor job.yaml says it, or they differ.
    """
    info = read_info(store)
    if info is not None and (info.imported or info.sources):
        what, how = (
            ("merged", "merge its sources")
            if info.sources
            else (f"imported ({info.imported})", "import its source")
        )
        return (
            info,
            None,
            f"the dataset was {what}, so it cannot be painted again; remove the shard's files and {how} again",
        )
    try:
        job = read_job(store)
    except ConfigError as error:
        if info is None:
            raise InputError(
                f"{store}: no dataset here: dataset.json is missing or damaged, and so is job.yaml"
            ) from error
        return (
            info,
            None,
            f"{error.problems[0]}; `synthgen run` with the dataset's job writes job.yaml again",
        )
    made = dataset_info(job)
    if info is not None:
        job, made, _ = as_begun(job, made, info)
    if info is not None and (different := changes(info, made)):
        raise InputError(
            f"{store}: its job.yaml and the files that it names are not what its shards are of: {'; '.join(different)}"
        )
    return replace(made, fingerprint=json.loads(json.dumps(made.fingerprint))), job, ""


def read_job(store: Store) -> Job:
    """The job that job.yaml holds.

    Raises:
        ConfigError: it holds none.
    """
    place = store.path("job.yaml")
    try:
        text = store.read("job.yaml").decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{place}: cannot be read: {error}"]) from None
    return job_of(parse_yaml(text, place), place)


@dataclass(frozen=True)
class Witness:
    """What is left of a bad shard that tells what it was.

    Attributes:
        marker: the old one, if it can be read.
        digests: of the tar: those of the marker, and that of index.json. One suffices, as the marker may be what is damaged.
    """

    marker: Marker | None
    digests: frozenset[str]

    @classmethod
    def of(cls, store: Store, number: int, job: Job | None) -> "Witness":
        marker = stored_marker(store, number)
        if marker is not None and job is not None and marker.count != job.shard_count(number):
            return cls(None, frozenset())  # it is to have more images than it had
        found = {marker.sha256, marker.md5} if marker else set()
        return cls(marker, frozenset(found | listed_md5(store, number)))

    def knows(self, shard: StagedShard) -> bool:
        """Whether the shard's tar has the bytes of the old one."""
        return not self.digests.isdisjoint((shard.marker.sha256, shard.marker.md5))

    def numerics(self, job: Job) -> Numerics:
        """What the shard was painted with: what its marker says, else the job's settings on this machine."""
        try:
            told = (
                NUMERICS.validate_python(self.marker.numerics)
                if self.marker and self.marker.numerics
                else None
            )
        except ValueError:
            told = None
        if (
            told
            and min(told.batch_size, told.chunk, told.threads) >= 1
            and told.device in ("cpu", "cuda")
        ):
            return told
        return Numerics(
            job.batch_size,
            job.chunk,
            job.threads,
            "cpu" if job.gpus == 0 else local_device(job),
            versions(),
        )

    def marked(self, shard: StagedShard) -> StagedShard:
        """The shard with its old marker, if nothing else than when and with what it was made would differ."""
        if self.marker and all(
            getattr(self.marker, name) == getattr(shard.marker, name) for name in DIGESTS
        ):
            return replace(shard, marker=self.marker)
        return shard


def listed_md5(store: Store, number: int) -> set[str]:
    """What index.json says of a shard's tar."""
    try:
        listed = json.loads(store.read("index.json"))["shardlist"]
        return {str(s["md5sum"]) for s in listed if s["url"] == shard_file(number, TAR)}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()


def difference(old: Numerics, new: Numerics) -> str:
    """Why a shard that was painted again has other bytes, as far as its numerics tell."""
    here, there = (
        {"device": made.device, "chunk": made.chunk, **made.versions} for made in (new, old)
    )
    differing = [
        f"{k} {there.get(k)} then, {here.get(k)} now"
        for k in sorted({*here, *there})
        if here.get(k) != there.get(k)
    ]
    return f"its bytes differ from the old ones: {'; '.join(differing) or 'the same versions, but another processor or build'}"


class Mending(Work):
    """The making good of a dataset: of its bad shards, one after the other.

    Args:
        job: of the dataset; None: there is none, and no shard can be painted again.
        why_not: why there is no job.
        accept: commit shards whose bytes differ from the old ones' too.
        report: called with how many images were painted so far, and of how many.

    Attributes:
        sound: nothing was wrong.
    """

    resumable = False

    def __init__(
        self,
        store: Store,
        info: DatasetInfo,
        job: Job | None,
        why_not: str,
        accept: bool,
        report: Report | None,
    ) -> None:
        super().__init__(store, info)
        self.job = job
        self.why_not = why_not
        self.accept = accept
        self.report = report
        self.done = Repaired()
        self.sound = False

    def open(self) -> AbstractContextManager[None]:
        return journal(self.store)

    def plan(self) -> list[int]:
        examined = examine(self.store, self.info)
        bad = bad_shards(examined.shards, self.job)
        self.sound = not bad and not examined.faults and read_info(self.store) is not None
        return bad

    def begin(self, shards: list[int]) -> None:
        """Write nothing: the dataset is there."""

    def make(self, shards: Iterable[int]) -> Generator[StagedShard, None, None]:
        """Make all that can be; of the others say why not."""
        witnesses = {number: Witness.of(self.store, number, self.job) for number in shards}
        to_paint: dict[int, Witness] = {}
        for number, witness in witnesses.items():
            shard = self.from_tar(number, witness)
            if shard is None:
                to_paint[number] = witness
            else:
                yield from self.settle(number, shard, witness, "")
        if self.job is None:
            self.done.left = dict.fromkeys(to_paint, self.why_not)
        else:
            yield from self.paint(self.job, to_paint)

    def finalise(self, made: Made) -> dict[str, Any]:
        if self.sound or self.done.left:
            return {}
        if read_info(self.store) is None:
            write_info(self.store, self.info, {"images": 0, "complete": False})
        self.store.delete(FAILURES)
        self.done.finalized = True
        return super().finalise(made)

    def end(self, made: Made, seconds: float) -> RunResult:
        done = self.done
        if not self.sound:
            told = {
                "restored": done.restored,
                "changed": list(done.changed),
                "unknown": done.unknown,
                "left": list(done.left),
            }
            log.info("repair ended", extra=facts(**told))
        return super().end(made, seconds)

    def from_tar(self, number: int, witness: Witness) -> StagedShard | None:
        """Make table and marker again from a tar that has its old bytes; None if there is none."""
        name, old = shard_file(number, TAR), witness.marker
        try:
            with self.store.open(name) as tar:
                if witness.digests.isdisjoint((digest_of(tar), digest_of(tar, "md5"))):
                    return None
                samples = list(parsed_samples(tar, name))
        except (OSError, DamagedShardError):
            return None
        kept = (old.numerics, old.seconds, old.attempts) if old else ({}, 0.0, 0)
        shard = stage(self.store, number, samples, *kept) if samples else None
        return shard if shard is not None and witness.knows(shard) else None

    def paint(self, job: Job, shards: dict[int, Witness]) -> Iterator[StagedShard]:
        """Paint shards again, those of the same numerics by the same worker."""
        told = {number: witness.numerics(job) for number, witness in shards.items()}

        def settings(number: int) -> tuple[str, int, int, int]:
            return (
                told[number].device,
                told[number].batch_size,
                told[number].chunk,
                told[number].threads,
            )

        painted, total = 0, sum(job.shard_count(number) for number in shards)
        for (device, *sizes), group in groupby(
            sorted(shards, key=lambda n: (settings(n), n)), key=settings
        ):
            here = "cpu" if device == "cpu" else local_device(job)
            if here != device and not self.accept:
                self.done.left |= dict.fromkeys(
                    group, "it was painted on a GPU, and there is none here: its bytes would differ"
                )
                continue
            as_then = job.model_copy(
                update=dict(zip(("batch_size", "chunk", "threads"), sizes, strict=True))
            )
            worker = Worker(as_then, self.store, here)
            for number in group:
                try:
                    for event in worker.make_shard(number):
                        if isinstance(event, StagedShard):
                            yield from self.settle(
                                number,
                                event,
                                shards[number],
                                difference(told[number], worker.numerics),
                            )
                        painted += event.images if isinstance(event, Progress) else 0
                        if self.report:
                            self.report(painted, total)
                except RejectedImageError as error:
                    self.done.left[number] = str(error)

    @cached_property
    def mixed(self) -> str:
        """Why a shard that has nothing to compare with does not belong to the others; empty if it does."""
        if self.job is None:
            return ""
        found = next(
            (text for _, marker in scan(self.store) if (text := other_versions(marker, self.job))),
            "",
        )
        return (
            f"nothing is left to compare its bytes with, and other shards were made with other versions: {found}"
            if found
            else ""
        )

    def settle(
        self, number: int, shard: StagedShard, witness: Witness, why: str
    ) -> Iterator[StagedShard]:
        """Yield a shard that was made again for it to be committed, or leave the old one as it is."""
        fault = why if witness.digests else self.mixed
        if witness.knows(shard):
            self.done.restored.append(number)
            shard = witness.marked(shard)
        elif not fault:
            self.done.unknown.append(number)
        elif self.accept:
            self.done.changed[number] = fault
        else:
            self.done.left[number] = fault
            return
        yield shard
