"""The driver: what is missing is made, committed as it comes, and finalised."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from synthgen.config import Job, with_values
from synthgen.engine.cluster import cluster_address, refuse_unreachable
from synthgen.engine.journal import facts, journal
from synthgen.engine.notice import Notice, NoTimeError
from synthgen.engine.pool import FailedShard, Pool, StoppedError, open_pool
from synthgen.engine.worker import Progress, is_full
from synthgen.errors import InputError
from synthgen.shards.dataset import (
    ALWAYS,
    DISTRIBUTION,
    PACKAGES,
    WITH_TORCH,
    ChangedJobError,
    DatasetInfo,
    begin,
    finalize,
    has_shard,
    other_versions,
    read_info,
    refuse_changed,
    refuse_foreign,
    remove_dataset,
    versions,
)
from synthgen.shards.former import begun_with, unknown_hashes
from synthgen.shards.lock import Lock
from synthgen.shards.shard import Marker, StagedShard, commit, scan, shard_sizes, withdraw
from synthgen.shards.store import Out, Store, open_store

log = logging.getLogger(__name__)

Report = Callable[[int], None]
FAILURES = "failures.jsonl"
MOST_FAILED = 100  # shards in one run; so many say that it is not the shards


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        made: images painted by this run.
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
    """

    images: int = 0
    interrupted: bool = False
    failed: list[FailedShard] = field(default_factory=list)
    stopped: StoppedError | None = None


def dataset_info(job: Job) -> DatasetInfo:
    """What dataset.json keeps of a job."""
    return DatasetInfo(job.name, job.images, job.fingerprint(), job.ids(), job.output.image_format, job.pipeline.licence())


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
        said.append(f"{names}: not recorded when this dataset was begun; the files are taken to be the same")
    if values:
        job = with_values(job, values, "dataset.json")
        info = replace(info, fingerprint=job.fingerprint())
    return job, info, said


def refuse_gone_cluster(job: Job, out: Store, address: str | None) -> None:
    """Raise InputError if shards are missing and the cluster that is to make them does not answer; nothing is written yet."""
    where = cluster_address(address)
    ray = sys.modules.get("ray")
    if job.workers == 0 or where is None or (ray is not None and ray.is_initialized()):
        return
    try:
        refuse_unreachable(where)
    except InputError:
        if missing_shards(job, out):
            raise


def missing_shards(job: Job, out: Out, found: dict[int, dict[str, int]] | None = None) -> list[int]:
    """Shards that are not there, or hold another number of images than they should (an extended last one).

    Args:
        found: what `shard_sizes` says, if it is known.

    Raises:
        ChangedJobError: there are some, and those that stay were made with other versions of what pixels depend on.
    """
    there: dict[int, int] = {}
    mixed, harmless, known = "", "", False
    for number, marker in scan(out, found):
        if number < job.shards and marker.count == job.shard_count(number):
            there[number] = marker.count
            mixed = mixed or difference(marker, job)
            other = other_versions(marker.numerics.get("versions"), versions(), (DISTRIBUTION, *PACKAGES))
            harmless, known = harmless or other, known or not other
    missing = [number for number in range(job.shards) if number not in there]
    if missing and mixed:
        raise ChangedJobError(f"{out} was made with other versions: {mixed}. Install those, or give another output.path")
    if missing and harmless and not known:  # once: from now on there is a shard of these versions
        log.warning("%s was begun with other versions, which no pixel depends on: %s", out, harmless)
    return missing


def difference(marker: Marker, job: Job) -> str:
    """How the versions that a shard's pixels depend on differ from those here; empty: not, or they are not known.

    Those of Ray and of synthgen itself do not count, nor does torch where no network generates or verifies. What another
    version of synthgen generates otherwise has a key in the fingerprint.
    """
    torch = job.pipeline.uses_torch or job.verify is not None
    return other_versions(marker.numerics.get("versions"), versions(), (*ALWAYS, *(WITH_TORCH if torch else ())))


def run(
    job: Job, address: str | None = None, overwrite: bool = False, report: Callable[[int, int], Report] | None = None
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
    out, info = open_store(job.output.path), dataset_info(job)
    refuse_foreign(out)
    said: list[str] = []
    if not overwrite:
        old = read_info(out)
        if old is not None and has_shard(out):
            job, info, said = as_begun(job, info, old)
        refuse_changed(out, info)
    refuse_gone_cluster(job, out, address)
    began, made, counts = time.perf_counter(), Made(), dict[str, Any]()
    try:
        with Lock(out) as lock, Notice() as notice, journal(out):
            with suppress(NoTimeError):
                out.clean()
                if overwrite:
                    remove_dataset(out)
                refuse_changed(out, info)
                found = shard_sizes(out)
                todo = missing_shards(job, out, found)
                for text in said if todo else ():
                    log.warning("%s: %s", out, text)
                begin(out, info, job.resolved())
                about = facts(job=job.name, images=job.images, missing_shards=len(todo), versions=versions())
                log.info("run started", extra=about)
                make(job, out, todo, found, lock, notice, made, address, report)
                lock.check()
                if not (made.failed or made.interrupted or made.stopped):
                    out.delete(FAILURES)
                out.clean()
                counts = finalize(out, info)
            if made.stopped is not None:
                raise made.stopped
            stopped = made.interrupted or (notice.given and not counts.get("complete"))
            result = RunResult(made.images, time.perf_counter() - began, stopped, counts, stopped and notice.given, made.failed)
            log.info("run interrupted" if stopped else "run ended", extra=ended_facts(result))
            return result
    except OSError as error:
        if not is_full(error):
            raise
        raise _full(out, error) from error


def _full(out: Store, error: OSError) -> StoppedError:
    return StoppedError(f"{out}: {os.strerror(error.errno or 0)}: make room, or give another output.path")


def make(
    job: Job,
    out: Store,
    todo: list[int],
    found: Container[int],
    lock: Lock,
    notice: Notice,
    made: Made,
    address: str | None = None,
    report: Callable[[int, int], Report] | None = None,
) -> None:
    """Make and commit shards until all are, or a signal or a full disk ends it.

    Args:
        found: shards that have any file.
    """
    if not todo or notice.given:
        return
    tell = report(job.images, job.images - sum(job.shard_count(n) for n in todo)) if report else None
    pool = None
    try:
        pool = open_pool(job, out, address)
        notice.listen()
        notice.finish = pool.finish
        if notice.given:
            pool.finish()
        take(out, pool, _withdrawn(out, todo, found, lock), lock, made, job, tell)
    except KeyboardInterrupt:
        made.interrupted = True
    except SystemExit:  # Ray heeds SIGTERM so while it starts
        made.interrupted = notice.given = True
    except StoppedError as error:
        made.stopped = error
    except OSError as error:
        if not is_full(error):
            raise
        made.stopped = _full(out, error)
    finally:
        notice.drop()
        if pool is not None:
            pool.close()


def take(
    out: Store,
    pool: Pool,
    shards: Iterable[int],
    lock: Lock,
    made: Made,
    job: Job,
    tell: Report | None = None,
) -> None:
    """Commit what a pool makes, and write down what it gives up."""
    for event in pool.run(shards):
        if isinstance(event, Progress):
            if tell and event.images:
                tell(event.images)
        elif isinstance(event, FailedShard):
            made.failed.append(event)
            out.write(FAILURES, "".join(json.dumps(asdict(f)) + "\n" for f in made.failed))
            if len(made.failed) == MOST_FAILED:
                pool.finish()
        else:
            if mixed := difference(event.marker, job):
                raise StoppedError(f"a worker has other versions than this driver: {mixed}. Install the same on all nodes")
            lock.check()
            commit(out, event)
            log.info("shard committed", extra=committed_facts(event))
            made.images += event.marker.count


def _withdrawn(out: Store, numbers: Iterable[int], found: Container[int], lock: Lock) -> Iterator[int]:
    """Take what is left of each shard out of the dataset before it is made."""
    for number in numbers:
        if number in found:
            lock.check()
            withdraw(out, number)
        yield number


def ended_facts(result: RunResult) -> dict[str, Any]:
    """What the log says of a run that ended."""
    return facts(made=result.made, seconds=round(result.seconds, 3), failed=len(result.failed), **result.counts)


def committed_facts(shard: StagedShard) -> dict[str, Any]:
    """What the log says of a committed shard."""
    marker = shard.marker
    how = {key: marker.numerics.get(key) for key in ("device", "chunk")}
    return facts(
        shard=shard.number, images=marker.count, seconds=marker.seconds, attempts=marker.attempts, bytes=marker.bytes, **how
    )
