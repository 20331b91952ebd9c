"""The writing of a dataset whose samples are there already: imported, or merged. Resumable like a run."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from synthgen.shards.dataset import DatasetInfo, begin, finalize, refuse_changed, remove_dataset
from synthgen.shards.lock import Lock
from synthgen.shards.sample import Sample
from synthgen.shards.shard import commit, scan, shard_sizes, stage, withdraw
from synthgen.shards.store import Out, Store, open_store

Tell = Callable[[str, int], object]


@dataclass(frozen=True)
class Written:
    """What was written; counts are those of `finalize`, `made` are samples."""

    made: int
    seconds: float
    interrupted: bool
    counts: dict[str, Any]


def write_dataset(
    out: Out,
    info: DatasetInfo,
    job: dict[str, Any],
    shard_size: int,
    samples: Callable[[range], Iterable[Sample]],
    overwrite: bool,
    tell: Tell,
) -> Written:
    """Write a dataset, or what is missing of it, one shard in memory at a time.

    Args:
        job: what job.yaml says.
        samples: gives the samples of these indices; called with ascending ranges.
        overwrite: remove the dataset that is in the output folder first.
        tell: called with "written" and how many samples more.
    """
    began, store = time.perf_counter(), open_store(out)
    with Lock(store) as lock:
        store.clean()
        if overwrite:
            remove_dataset(store)
        refuse_changed(store, info)
        begin(store, info, job)
        made, interrupted = 0, False
        try:
            for count in write_missing(store, info.asked, shard_size, samples, lock, tell):
                made += count
        except KeyboardInterrupt:
            interrupted = True
        lock.check()
        store.clean()
        counts = finalize(store, info)
    return Written(made, time.perf_counter() - began, interrupted, counts)


def write_missing(
    store: Store, total: int, shard_size: int, samples: Callable[[range], Iterable[Sample]], lock: Lock, tell: Tell
) -> Iterator[int]:
    """Write and commit the shards that are missing; yields how many samples each has."""
    found = shard_sizes(store)
    there = {number: marker.count for number, marker in scan(store, found)}
    for number, first in enumerate(range(0, total, shard_size)):
        indices = range(first, min(first + shard_size, total))
        if there.get(number) == len(indices):
            tell("written", len(indices))
            continue
        began, group = time.perf_counter(), []
        if number in found:
            lock.check()
            withdraw(store, number)
        for sample in samples(indices):
            group.append(sample)
            tell("written", 1)
        lock.check()
        commit(store, stage(store, number, group, {}, time.perf_counter() - began, len(group)))
        yield len(group)
