#!/usr/bin/env python3
"""How the driver stands up to very large jobs, with stubs in the place of painters.

usage: benchmarks/scale.py [--images 50000000] [--shards 200000] [--through 30000] [--seconds 20] [--json]
  first      s from the start of Ray to the first finished shard, and of that from its workers' start
  scheduled  shards/s with two workers that make nothing, through so many of the shards
  memory     MB that the driver grew by in the second half of them, and what it had then
  committed  shards/s with two workers that write a small shard each, committed by the driver (tar, table, marker; fsync of each)
  1, 2, 4    shards/s of so many workers that sleep a quarter of a second a shard; linear: relative to as many times one
"""

import argparse
import json
import os
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import table

from synthgen.config import Job, load_job
from synthgen.dataset.marker import Marker
from synthgen.dataset.sample import Sample
from synthgen.dataset.shard import StagedShard, stage
from synthgen.engine.driver import Generation, Made, commit_shards, dataset_info, missing_shards
from synthgen.engine.pool import Event
from synthgen.engine.ray_pool import RayPool
from synthgen.storage.base import Store
from synthgen.storage.location import open_store
from synthgen.storage.lock import Lock

SLEEP = 0.25


class Nothing:
    """Makes no files."""

    def __init__(self, job: Job, store: Store, device: str) -> None:
        self.job, self.store = job, store

    def make_shard(self, number: int) -> Iterator[Event]:
        yield StagedShard(number, "", "", Marker(self.job.shard_count(number), 0, 0, "", "", 0, ""))


class Sleeper(Nothing):
    """Takes its time."""

    def make_shard(self, number: int) -> Iterator[Event]:
        time.sleep(SLEEP)
        yield from super().make_shard(number)


class Writer(Nothing):
    """Writes a shard of one sample."""

    def make_shard(self, number: int) -> Iterator[Event]:
        sample = Sample(number, 8, 8, "nothing", 0, 0, (), bytes(512), "jpg")
        yield stage(self.store, number, [sample], {}, 0.0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=50_000_000)
    parser.add_argument("--shards", type=int, default=200_000)
    parser.add_argument("--through", type=int, default=30_000, help="shards that are scheduled")
    parser.add_argument("--seconds", type=float, default=20, help="of each other measurement")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        rows = measure(
            Path(folder), args.images, -(-args.images // args.shards), args.through, args.seconds
        )
    print(json.dumps(rows, indent=1) if args.json else table(rows))


def measure(
    out: Path, images: int, size: int, through: int, seconds: float
) -> dict[str, dict[str, Any]]:
    def job(workers: int) -> Job:
        changes = [
            f"images={images}",
            f"output.shard_size={size}",
            f"output.path={out}",
            f"workers={workers}",
        ]
        return load_job("100dogs", ["pipeline=paste", *changes])

    import ray

    began = time.monotonic()
    dataset_info(job(2))
    todo = missing_shards(job(2), open_store(out))
    planned = time.monotonic() - began
    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=128 * 2**20
    )
    ready = time.monotonic() - began
    first, rate, grown = scheduled(job(2), out, todo[:through], float("inf"), Nothing)
    rows: dict[str, dict[str, Any]] = {
        "first": {
            "seconds": round(ready + first, 2),
            "planned": round(planned, 2),
            "of workers": round(first, 2),
        },
        "scheduled": {"shards": through, "shards/s": round(rate, 1)},
        "memory": {"grew": round(grown, 2), "of": round(resident())},
        "committed": {"shards/s": round(committed(job(2), out, todo, seconds), 1)},
    }
    alone = 0.0
    for workers in (1, 2, 4):
        rate = scheduled(job(workers), out, todo, seconds, Sleeper)[1]
        alone = alone or rate
        rows[str(workers)] = {
            "shards/s": round(rate, 2),
            "linear": round(rate / alone / workers, 3),
        }
    ray.shutdown()
    return rows


def scheduled(
    job: Job, out: Path, shards: list[int], seconds: float, load: type[Nothing]
) -> tuple[float, float, float]:
    """Seconds to the first shard, shards/s from then on, and MB that this process grew by in the second half of the shards."""
    began = time.monotonic()
    pool = RayPool(job, open_store(out), load=load)
    times, half = [], 0.0
    for event in pool.run(shards):
        if not isinstance(event, StagedShard):
            continue
        times.append(time.monotonic())
        if times[-1] - times[0] > seconds:
            pool.finish()
        if len(times) == len(shards) // 2:
            half = resident()
    grown = resident() - half
    pool.close()
    steady = [t for t in times if t <= times[0] + seconds]
    steady = steady[
        int(job.workers) if isinstance(job.workers, int) else 1 :
    ]  # all workers are there
    return times[0] - began, (len(steady) - 1) / (steady[-1] - steady[0]), grown


def committed(job: Job, out: Path, todo: list[int], seconds: float) -> float:
    """Shards/s that are made and committed, from the first one on."""
    store = open_store(out)
    pool = RayPool(job, store, load=Writer)
    made = Made()
    began = [0.0]

    def shards() -> Iterator[int]:
        for number in todo:
            if began[0] and time.monotonic() - began[0] > seconds:
                return
            yield number

    class Timed(Lock):
        def check(self) -> None:
            began[0] = began[0] or time.monotonic()
            super().check()

    class Taken(Generation):
        def make(self, shards: Iterable[int]) -> Generator[StagedShard, None, None]:
            yield from self.take(pool, shards)

    with Timed(store) as lock:
        commit_shards(Taken(job, store, dataset_info(job)), shards(), lock, made)
    spent = time.monotonic() - began[0]
    pool.close()
    return (made.images - 1) / spent


def resident() -> float:
    """MB of memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
