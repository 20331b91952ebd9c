"""The driver: what is missing is made, committed as it comes, and finalised.

`drive` is the one loop. What it makes is a `Work`: a run's `Generation`, an `Assembly` of samples that are there already (merge,
import), or the mending of a repair.
"""

import json
import logging
import math
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from synthgen.config.job import Job
from synthgen.config.loading import with_values
from synthgen.dataset.finalise import begin, clean, finalize, remove_dataset
from synthgen.dataset.former_defaults import begun_with, unknown_hashes
from synthgen.dataset.info import (
    ChangedJobError,
    DatasetInfo,
    has_shard,
    read_info,
    refuse_changed,
    refuse_foreign,
)
from synthgen.dataset.marker import Marker, scan, shard_sizes
from synthgen.dataset.sample import Sample
from synthgen.dataset.shard import StagedShard, commit, stage, withdraw
from synthgen.dataset.versions import (
    ALWAYS,
    DISTRIBUTION,
    PACKAGES,
    WITH_TORCH,
    other_versions,
    versions,
)
from synthgen.engine.cluster import cluster_address, refuse_unreachable
from synthgen.engine.local_pool import LocalPool
from synthgen.engine.pool import FailedShard, Pool, StoppedError
from synthgen.engine.ray_pool import RayPool
from synthgen.engine.run_log import facts, journal
from synthgen.engine.termination import Notice, NoTimeError
from synthgen.engine.worker import Progress, is_full
from synthgen.errors import InputError
from synthgen.storage.base import Store
from synthgen.storage.location import open_store
from synthgen.storage.lock import Lock

log = logging.getLogger(__name__)

Report = Callable[[int], None]
Tell = Callable[[str, int], object]
FAILURES = "failures.jsonl"
MOST_FAILED = 100  # shards in one run; so many say that it is not the shards


@dataclass(frozen=True)
class RunResult:
    """What a run did, or a merge, or an import.

    Attributes:
        made: images that were painted, or written.
        interrupted: stopped by Ctrl-C or SIGTERM.
        counts: what the dataset now holds (`finalize`); empty if SIGTERM left no time to say.
        terminated: by SIGTERM.
        failed: shards that were given up.
    """

    made: int
    seconds: float
    interrupted: bool
    counts: dict[str, Any]
    terminated: bool = False
    failed: Sequence[FailedShard] = ()


@dataclass
class Made:
    """What became of the shards that were to be made.

    Attributes:
        stopped: why there is no going on.
        counts: what the dataset now holds; empty until it is finalised.
    """

    images: int = 0
    interrupted: bool = False
    stopped: Exception | None = None
    counts: dict[str, Any] = field(default_factory=dict)


class Work(ABC):
    """What a driver works on: which shards of a dataset it makes, and how.

    Attributes:
        store: where the dataset lies.
        info: what dataset.json says.
        found: shards that have any file; it is taken out of the dataset before the shard is made anew.
        resumable: after Ctrl-C or on a full disk what was committed is finalised, and the same command goes on.
    """

    resumable = True

    def __init__(self, store: Store, info: DatasetInfo) -> None:
        self.store = store
        self.info = info
        self.found: Container[int] = ()

    def open(self) -> AbstractContextManager[None]:
        """Return what is open while the lock is held."""
        return nullcontext()

    @abstractmethod
    def plan(self) -> list[int]:
        """Return the numbers of the shards that are to be made, ascending.

        Raises:
            ChangedJobError: the output holds another job.
        """

    @abstractmethod
    def begin(self, shards: list[int]) -> None:
        """Write what stands in the output before the first shard; called with what `plan` returned."""

    @abstractmethod
    def make(self, shards: Iterable[int]) -> Generator[StagedShard, None, None]:
        """Make shards, and yield those that are to be committed, staged; each is committed when this goes on.

        Args:
            shards: what `plan` returned; what is left of a shard is gone when its number is taken.
        """

    def finalise(self, made: Made) -> dict[str, Any]:
        """Write the files beside the shards; return what the dataset now holds."""
        return finalize(self.store, self.info)

    def end(self, made: Made, seconds: float) -> RunResult:
        """Return what was done, or raise what stopped it."""
        if made.stopped is not None:
            raise made.stopped
        return RunResult(made.images, seconds, made.interrupted, made.counts)


def drive(work: Work) -> RunResult:
    """Make the shards that are missing, commit each as it comes, and write the files beside them.

    Raises:
        LockedError: another run works on the output, or has taken it over: then nothing more is committed.
        ChangedJobError: the output holds another job.
    """
    began, made = time.perf_counter(), Made()
    with Lock(work.store) as lock, work.open():
        with suppress(NoTimeError):
            clean(work.store)
            shards = work.plan()
            work.begin(shards)
            if shards:
                commit_shards(work, shards, lock, made)
            lock.check()
            clean(work.store)
            made.counts = work.finalise(made)
        return work.end(made, time.perf_counter() - began)


def commit_shards(work: Work, shards: Iterable[int], lock: Lock, made: Made) -> None:
    """Commit what is made, until all is, or a signal or a full disk ends it."""
    try:
        with closing(work.make(_withdrawn(work, shards, lock))) as staged:
            for shard in staged:
                lock.check()
                commit(work.store, shard)
                made.images += shard.marker.count
    except KeyboardInterrupt:
        if not work.resumable:
            raise
        made.interrupted = True
    except StoppedError as error:
        made.stopped = error
    except OSError as error:
        if not (work.resumable and is_full(error)):
            raise
        made.stopped = error


def _withdrawn(work: Work, numbers: Iterable[int], lock: Lock) -> Iterator[int]:
    """Take what is left of each shard out of the dataset before it is made."""
    for number in numbers:
        if number in work.found:
            lock.check()
            withdraw(work.store, number)
        yield number


def claim(store: Store, info: DatasetInfo, overwrite: bool) -> dict[int, dict[str, int]]:
    """Return the files of the shards that an output has (`shard_sizes`).

    Args:
        overwrite: remove the dataset that is in the output first.

    Raises:
        ChangedJobError: the output holds another job.
    """
    if overwrite:
        remove_dataset(store)
    refuse_changed(store, info)
    return shard_sizes(store)


class Assembly(Work):
    """A dataset whose samples are there already: imported, or merged. One shard is in memory at a time.

    Args:
        job: what job.yaml says.
        samples: gives the samples of these indices; called with ascending ranges.
        overwrite: remove the dataset that is in the output folder first.
        tell: called with "written" and how many samples more.
    """

    def __init__(
        self,
        store: Store,
        info: DatasetInfo,
        job: dict[str, Any],
        shard_size: int,
        samples: Callable[[range], Iterable[Sample]],
        overwrite: bool,
        tell: Tell,
    ) -> None:
        super().__init__(store, info)
        self.job = job
        self.shard_size = shard_size
        self.samples = samples
        self.overwrite = overwrite
        self.tell = tell
        self.kept = 0  # samples of the shards that are there

    def indices(self, number: int) -> range:
        """Return the indices of a shard's samples."""
        first = number * self.shard_size
        return range(first, min(first + self.shard_size, self.info.asked))

    def plan(self) -> list[int]:
        found = claim(self.store, self.info, self.overwrite)
        self.found = found
        there = {number: marker.count for number, marker in scan(self.store, found)}
        shards = range(math.ceil(self.info.asked / self.shard_size))
        missing = [number for number in shards if there.get(number) != len(self.indices(number))]
        self.kept = self.info.asked - sum(len(self.indices(number)) for number in missing)
        return missing

    def begin(self, shards: list[int]) -> None:
        begin(self.store, self.info, self.job)
        if self.kept:
            self.tell("written", self.kept)

    def make(self, shards: Iterable[int]) -> Generator[StagedShard, None, None]:
        for number in shards:
            began, group = time.perf_counter(), list[Sample]()
            for sample in self.samples(self.indices(number)):
                group.append(sample)
                self.tell("written", 1)
            yield stage(self.store, number, group, {}, time.perf_counter() - began, len(group))


def dataset_info(job: Job) -> DatasetInfo:
    """What dataset.json keeps of a job."""
    return DatasetInfo(
        job.name,
        job.images,
        job.fingerprint(),
        job.ids(),
        job.output.image_format,
        job.pipeline.licence(),
    )


def as_begun(job: Job, info: DatasetInfo, old: DatasetInfo) -> tuple[Job, DatasetInfo, list[str]]:
    """The job as an older version began it, where defaults have changed since; and what is to be said of that, a line each.

    Args:
        info: `dataset_info` of the job.
        old: what the dataset's own dataset.json says.

    Raises:
        ConfigError: the job does not run with the values that the dataset was begun with.
    """
    new = json.loads(json.dumps(info.fingerprint))
    values = begun_with(old.fingerprint, new, job.given)
    said = []
    for key, value in values.items():
        today = f"today's default is {new[key]!r}"
        said.append(f"{key} is {value!r}, as when this dataset was begun; {today}")
    hashes = unknown_hashes(old.fingerprint, new)
    if hashes:
        names = ", ".join(hashes)
        said.append(
            f"{names}: not recorded when this dataset was begun; the files are taken to be the same"
        )
    if values:
        job = with_values(job, values, "dataset.json")
        info = replace(info, fingerprint=job.fingerprint())
    return job, info, said


def refuse_gone_cluster(job: Job, store: Store, address: str | None) -> None:
    """Raise InputError if shards are missing and the cluster that is to make them does not answer; nothing is written yet."""
    where = cluster_address(address)
    ray = sys.modules.get("ray")
    if job.workers == 0 or where is None or (ray is not None and ray.is_initialized()):
        return
    try:
        refuse_unreachable(where)
    except InputError:
        if missing_shards(job, store):
            raise


def missing_shards(
    job: Job, store: Store, found: dict[int, dict[str, int]] | None = None
) -> list[int]:
    """Shards that are not there, or hold another number of images than they should (an extended last one).

    Args:
        found: what `shard_sizes` says, if it is known.

    Raises:
        ChangedJobError: there are some, and those that stay were made with other versions of what pixels depend on.
    """
    there: dict[int, int] = {}
    mixed, harmless, known = "", "", False
    for number, marker in scan(store, found):
        if number < job.shards and marker.count == job.shard_count(number):
            there[number] = marker.count
            mixed = mixed or difference(marker, job)
            other = other_versions(
                marker.numerics.get("versions"), versions(), (DISTRIBUTION, *PACKAGES)
            )
            harmless, known = harmless or other, known or not other
    missing = [number for number in range(job.shards) if number not in there]
    if missing and mixed:
        raise ChangedJobError(
            f"{store} was made with other versions: {mixed}. Install those, or give another output.path"
        )
    if missing and harmless and not known:  # once: from now on there is a shard of these versions
        log.warning(
            "%s was begun with other versions, which no pixel depends on: %s", store, harmless
        )
    return missing


def difference(marker: Marker, job: Job) -> str:
    """How the versions that a shard's pixels depend on differ from those here; empty: not, or they are not known.

    Those of Ray and of synthgen itself do not count, nor does torch where no network generates or verifies. What another
    version of synthgen generates otherwise has a key in the fingerprint.
    """
    torch = job.pipeline.uses_torch or job.verify is not None
    return other_versions(
        marker.numerics.get("versions"), versions(), (*ALWAYS, *(WITH_TORCH if torch else ()))
    )


class Generation(Work):
    """The dataset of a job.

    Args:
        said: lines to be told if anything is made (`as_begun`).
        address: of a running Ray cluster.
        overwrite: remove what the output folder holds of another job first.
        report: called with (all images, images already there) once; its result with each number of new ones.

    Attributes:
        failed: shards that were given up.
    """

    def __init__(
        self,
        job: Job,
        store: Store,
        info: DatasetInfo,
        said: Sequence[str] = (),
        address: str | None = None,
        overwrite: bool = False,
        report: Callable[[int, int], Report] | None = None,
    ) -> None:
        super().__init__(store, info)
        self.job = job
        self.said = said
        self.address = address
        self.overwrite = overwrite
        self.report = report
        self.notice = Notice()
        self.failed: list[FailedShard] = []
        self.kept = 0  # images of the shards that are there

    @contextmanager
    def open(self) -> Iterator[None]:
        with self.notice, journal(self.store):
            yield

    def plan(self) -> list[int]:
        found = claim(self.store, self.info, self.overwrite)
        self.found = found
        missing = missing_shards(self.job, self.store, found)
        self.kept = self.job.images - sum(self.job.shard_count(number) for number in missing)
        return missing

    def begin(self, shards: list[int]) -> None:
        for text in self.said if shards else ():
            log.warning("%s: %s", self.store, text)
        begin(self.store, self.info, self.job.resolved())
        about = facts(
            job=self.job.name,
            images=self.job.images,
            missing_shards=len(shards),
            versions=versions(),
        )
        log.info("run started", extra=about)

    def make(self, shards: Iterable[int]) -> Generator[StagedShard, None, None]:
        if self.notice.given:
            return
        tell = self.report(self.job.images, self.kept) if self.report else None
        pool = None
        try:
            pool = open_pool(self.job, self.store, self.address)
            self.notice.listen()
            self.notice.finish = pool.finish
            if self.notice.given:
                pool.finish()
            yield from self.take(pool, shards, tell)
        except SystemExit:  # Ray heeds SIGTERM so while it starts
            self.notice.given = True
            raise KeyboardInterrupt from None
        finally:
            self.notice.drop()
            if pool is not None:
                pool.close()

    def take(
        self, pool: Pool, shards: Iterable[int], tell: Report | None = None
    ) -> Iterator[StagedShard]:
        """Take what a pool makes, and write down what it gives up."""
        for event in pool.run(shards):
            if isinstance(event, Progress):
                if tell and event.images:
                    tell(event.images)
            elif isinstance(event, FailedShard):
                self.failed.append(event)
                self.store.write(
                    FAILURES, "".join(json.dumps(asdict(f)) + "\n" for f in self.failed)
                )
                if len(self.failed) == MOST_FAILED:
                    pool.finish()
            else:
                if mixed := difference(event.marker, self.job):
                    raise StoppedError(
                        f"a worker has other versions than this driver: {mixed}. Install the same on all nodes"
                    )
                yield event
                log.info("shard committed", extra=committed_facts(event))

    def finalise(self, made: Made) -> dict[str, Any]:
        if not (self.failed or made.interrupted or made.stopped):
            self.store.delete(FAILURES)
        return super().finalise(made)

    def end(self, made: Made, seconds: float) -> RunResult:
        if isinstance(made.stopped, OSError):
            raise full_disk(self.store, made.stopped)
        result = super().end(made, seconds)
        stopped = made.interrupted or (self.notice.given and not made.counts.get("complete"))
        terminated = stopped and self.notice.given
        result = replace(result, interrupted=stopped, terminated=terminated, failed=self.failed)
        log.info("run interrupted" if stopped else "run ended", extra=ended_facts(result))
        return result


def run(
    job: Job,
    address: str | None = None,
    overwrite: bool = False,
    report: Callable[[int, int], Report] | None = None,
) -> RunResult:
    """Make the dataset of a job, or what is missing of it.

    Args:
        address: of a running Ray cluster.
        overwrite: remove what the output folder holds of another job first.
        report: called with (all images, images already there) once; its result with each number of new ones.

    Raises:
        ChangedJobError: the output holds another job, or was made with other versions of what pixels depend on.
        LockedError: another run works on it.
        InputError: no Ray cluster answers at the address.
        StoppedError: the disk is full, no worker starts, or one has other versions; all that was committed stays.
    """
    store, info = open_store(job.output.path), dataset_info(job)
    refuse_foreign(store)
    said: list[str] = []
    if not overwrite:
        old = read_info(store)
        if old is not None and has_shard(store):
            job, info, said = as_begun(job, info, old)
        refuse_changed(store, info)
    refuse_gone_cluster(job, store, address)
    try:
        return drive(Generation(job, store, info, said, address, overwrite, report))
    except OSError as error:
        if not is_full(error):
            raise
        raise full_disk(store, error) from error


def full_disk(store: Store, error: OSError) -> StoppedError:
    return StoppedError(
        f"{store}: {os.strerror(error.errno or 0)}: make room, or give another output.path"
    )


def open_pool(job: Job, store: Store, address: str | None = None) -> Pool:
    """The pool that `workers` asks for: 0 in this process; a number, [least, most] or null on Ray."""
    if job.workers == 0:
        return LocalPool(job, store)
    return RayPool(job, store, address)


def ended_facts(result: RunResult) -> dict[str, Any]:
    """What the log says of a run that ended."""
    return facts(
        made=result.made,
        seconds=round(result.seconds, 3),
        failed=len(result.failed),
        **result.counts,
    )


def committed_facts(shard: StagedShard) -> dict[str, Any]:
    """What the log says of a committed shard."""
    marker = shard.marker
    how = {key: marker.numerics.get(key) for key in ("device", "chunk")}
    return facts(
        shard=shard.number,
        images=marker.count,
        seconds=marker.seconds,
        attempts=marker.attempts,
        bytes=marker.bytes,
        **how,
    )
