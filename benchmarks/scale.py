#!/usr/bin/env python3
"""Measure the driver with very large jobs, whose workers generate no images.

usage: benchmarks/scale.py [--images 50000000] [--shards 200000] [--through 30000] [--seconds 20]
                           [--json]
  first      seconds from the start to the first finished shard, for planning alone, and from the
             start of the workers
  scheduled  shards/s with two workers that write no files, for `--through` shards
  memory     MB by which the driver grows during the second half of these shards, and its memory at
             the end
  committed  shards/s with two workers that write small shards, which the driver commits (tar, table
             and marker, with an fsync of each)
  1, 2, 4    shards/s of this number of workers that sleep a quarter of a second per shard, and
             "linear": that rate relative to 1, 2 or 4 times the rate of one worker
"""

import argparse
import json
import os
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import format_table

from synthgen.config import Job, load_job
from synthgen.dataset.marker import Marker
from synthgen.dataset.sample import Sample
from synthgen.dataset.shard import StagedShard, stage
from synthgen.engine.driver import WorkState, commit_shards
from synthgen.engine.generation import Generation, build_dataset_info, find_missing_shards
from synthgen.engine.pool import Event
from synthgen.engine.ray_pool import RayPool
from synthgen.storage.base import Store
from synthgen.storage.location import open_store
from synthgen.storage.lock import Lock

SLEEP = 0.25


class EmptyWorker:
    """A worker that writes no files."""

    def __init__(self, job: Job, store: Store, device: str) -> None:
        self.job, self.store = job, store

    def make_shard(self, number: int) -> Iterator[Event]:
        marker = Marker(self.job.images_in_shard(number), 0, 0, "", "", 0, "")
        yield StagedShard(number, "", "", marker)


class SleepingWorker(EmptyWorker):
    """A worker that sleeps for each shard."""

    def make_shard(self, number: int) -> Iterator[Event]:
        time.sleep(SLEEP)
        yield from super().make_shard(number)


class WritingWorker(EmptyWorker):
    """A worker that writes shards of one sample."""

    def make_shard(self, number: int) -> Iterator[Event]:
        sample = Sample(number, 8, 8, "nothing", 0, 0, (), bytes(512), "jpg")
        yield stage(self.store, number, [sample], {}, 0.0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=50_000_000)
    parser.add_argument("--shards", type=int, default=200_000)
    parser.add_argument(
        "--through", type=int, default=30_000, help="number of shards of the row `scheduled`"
    )
    parser.add_argument("--seconds", type=float, default=20, help="seconds of each other row")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        shard_size = -(-args.images // args.shards)
        rows = measure(Path(folder), args.images, shard_size, args.through, args.seconds)
    print(json.dumps(rows, indent=1) if args.json else format_table(rows))


def measure(
    out: Path, images: int, shard_size: int, through: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Return all rows."""

    def make_job(workers: int) -> Job:
        overrides = [
            f"images={images}",
            f"output.shard_size={shard_size}",
            f"output.path={out}",
            f"workers={workers}",
        ]
        return load_job("100dogs", ["pipeline=paste", *overrides])

    import ray

    start = time.monotonic()
    build_dataset_info(make_job(2))
    shards = find_missing_shards(make_job(2), open_store(out))
    planned = time.monotonic() - start
    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=128 * 2**20
    )
    ready = time.monotonic() - start
    endless = float("inf")
    first, rate, growth = schedule(make_job(2), out, shards[:through], endless, EmptyWorker)
    memory = read_memory()
    commit_rate = measure_commits(make_job(2), out, shards, seconds)
    rows: dict[str, dict[str, Any]] = {
        "first": {
            "seconds": round(ready + first, 2),
            "planned": round(planned, 2),
            "of workers": round(first, 2),
        },
        "scheduled": {"shards": through, "shards/s": round(rate, 1)},
        "memory": {"grew": round(growth, 2), "of": round(memory)},
        "committed": {"shards/s": round(commit_rate, 1)},
    }
    single_rate = 0.0
    for workers in (1, 2, 4):
        rate = schedule(make_job(workers), out, shards, seconds, SleepingWorker)[1]
        if workers == 1:
            single_rate = rate
        rows[str(workers)] = {
            "shards/s": round(rate, 2),
            "linear": round(rate / single_rate / workers, 3),
        }
    ray.shutdown()
    return rows


def schedule(
    job: Job, out: Path, shards: list[int], seconds: float, load: type[EmptyWorker]
) -> tuple[float, float, float]:
    """Run shards, and stop after `seconds` from the first one.

    Returns:
        the seconds to the first shard, shards/s from then on, and the MB by which this process
        grows during the second half of the shards.
    """
    start = time.monotonic()
    pool = RayPool(job, open_store(out), load=load)
    times = []
    half = 0.0
    for event in pool.run(shards):
        if not isinstance(event, StagedShard):
            continue
        times.append(time.monotonic())
        if times[-1] - times[0] > seconds:
            pool.finish()
        if len(times) == len(shards) // 2:
            half = read_memory()
    growth = read_memory() - half
    pool.close()
    measured = [moment for moment in times if moment <= times[0] + seconds]
    # The first shard of each worker includes its start.
    measured = measured[int(job.workers) if isinstance(job.workers, int) else 1 :]
    rate = (len(measured) - 1) / (measured[-1] - measured[0])
    return times[0] - start, rate, growth


def measure_commits(job: Job, out: Path, shards: list[int], seconds: float) -> float:
    """Return the shards/s that are written and committed, from the first one on."""
    store = open_store(out)
    pool = RayPool(job, store, load=WritingWorker)
    made = WorkState()
    start = 0.0

    def list_shards() -> Iterator[int]:
        for number in shards:
            if start and time.monotonic() - start > seconds:
                return
            yield number

    class TimedLock(Lock):
        """A lock that notes the time of its first check."""

        def check(self) -> None:
            nonlocal start
            if not start:
                start = time.monotonic()
            super().check()

    class PoolGeneration(Generation):
        """A generation with the workers of `pool`."""

        def make(self, shards: Iterable[int]) -> Generator[StagedShard, None, None]:
            yield from self.take(pool, shards)

    with TimedLock(store) as lock:
        commit_shards(
            PoolGeneration(job, store, build_dataset_info(job)), list_shards(), lock, made
        )
    elapsed = time.monotonic() - start
    pool.close()
    return (made.images - 1) / elapsed


def read_memory() -> float:
    """Return the resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
