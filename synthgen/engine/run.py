"""The driver: what is missing is made, committed as it comes, and finalised."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from synthgen.config import Job
from synthgen.engine.journal import facts, journal
from synthgen.engine.pool import ShardFailedError, open_pool
from synthgen.engine.worker import Progress
from synthgen.shards.dataset import DatasetInfo, begin, finalize, refuse_changed, refuse_foreign, remove_dataset, versions
from synthgen.shards.lock import Lock
from synthgen.shards.shard import StagedShard, commit, scan, shard_sizes, withdraw
from synthgen.shards.store import Out, Store, open_store

log = logging.getLogger(__name__)

Report = Callable[[int], None]


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        made: images painted by this run.
        interrupted: stopped by Ctrl-C.
        counts: what the dataset now holds (`finalize`).
    """

    made: int
    seconds: float
    interrupted: bool
    counts: dict[str, Any]


def dataset_info(job: Job) -> DatasetInfo:
    """What dataset.json keeps of a job."""
    return DatasetInfo(job.name, job.images, job.fingerprint(), job.ids(), job.output.image_format, job.pipeline.licence())


def missing_shards(job: Job, out: Out, found: dict[int, dict[str, int]] | None = None) -> list[int]:
    """Shards that are not there, or hold another number of images than they should (an extended last one).

    Args:
        found: what `shard_sizes` says, if it is known.
    """
    there = {number: marker.count for number, marker in scan(out, found)}
    return [number for number in range(job.shards) if there.get(number) != job.shard_count(number)]


def run(
    job: Job, address: str | None = None, overwrite: bool = False, report: Callable[[int, int], Report] | None = None
) -> RunResult:
    """Make the dataset of a job, or what is missing of it.

    Args:
        address: of a running Ray cluster.
        overwrite: remove what the output folder holds of another job first.
        report: called with (all images, images already there) once; its result with each number of new ones.

    Raises:
        ChangedJobError: the output holds another job.
        LockedError: another run works on it.
        ShardFailedError: a shard could not be made; all that was committed stays, and is finalised.
    """
    out, info = open_store(job.output.path), dataset_info(job)
    refuse_foreign(out)
    if not overwrite:
        refuse_changed(out, info)
    began = time.perf_counter()
    with Lock(out) as lock, journal(out):
        out.clean()
        if overwrite:
            remove_dataset(out)
        refuse_changed(out, info)
        begin(out, info, job.resolved())
        found = shard_sizes(out)
        todo = missing_shards(job, out, found)
        log.info("run started", extra=facts(job=job.name, images=job.images, missing_shards=len(todo), versions=versions()))
        for number in found.keys() & set(todo):
            withdraw(out, number)
        failure, made, interrupted = None, 0, False
        try:
            made, interrupted = make(job, out, todo, lock, address, report)
        except ShardFailedError as error:
            failure = error
        out.clean()
        counts = finalize(out, info)
        if failure is not None:
            raise failure
        ended = "run interrupted" if interrupted else "run ended"
        log.info(ended, extra=facts(made=made, seconds=round(time.perf_counter() - began, 3), **counts))
    return RunResult(made, time.perf_counter() - began, interrupted, counts)


def make(
    job: Job, out: Store, todo: list[int], lock: Lock, address: str | None, report: Callable[[int, int], Report] | None
) -> tuple[int, bool]:
    """Make and commit shards; returns how many images, and whether a Ctrl-C ended it."""
    tell = report(job.images, job.images - sum(job.shard_count(n) for n in todo)) if report else None
    made, pool = 0, None
    try:
        if not todo:
            return 0, False
        pool = open_pool(job, out, address)
        for event in pool.run(todo):
            if isinstance(event, Progress):
                if tell:
                    tell(event.images)
            else:
                lock.check()
                commit(out, event)
                log.info("shard committed", extra=committed_facts(event))
                made += event.marker.count
        return made, False
    except KeyboardInterrupt:
        return made, True
    finally:
        if pool is not None:
            pool.close()


def committed_facts(shard: StagedShard) -> dict[str, Any]:
    """What the log says of a committed shard."""
    marker = shard.marker
    how = {key: marker.numerics.get(key) for key in ("device", "chunk")}
    return facts(
        shard=shard.number, images=marker.count, seconds=marker.seconds, attempts=marker.attempts, bytes=marker.bytes, **how
    )
