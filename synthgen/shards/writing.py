"""The writing of a dataset whose samples are there already: imported, or merged. Resumable like a run."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthgen.shards.dataset import DatasetInfo, begin, finalize, refuse_changed, remove_dataset
from synthgen.shards.lock import Lock
from synthgen.shards.sample import Sample
from synthgen.shards.shard import commit, committed, read_marker, stage, withdraw
from synthgen.shards.store import clean

Tell = Callable[[str, int], object]


@dataclass(frozen=True)
class Written:
    """What was written; counts are those of `finalize`, `made` are samples."""

    made: int
    seconds: float
    interrupted: bool
    counts: dict[str, Any]


def write_dataset(
    out: Path,
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
    began = time.perf_counter()
    with Lock(out) as lock:
        clean(out)
        if overwrite:
            remove_dataset(out)
        refuse_changed(out, info)
        begin(out, info, job)
        made, interrupted = 0, False
        try:
            for count in write_missing(out, info.asked, shard_size, samples, lock, tell):
                made += count
        except KeyboardInterrupt:
            interrupted = True
        clean(out)
        counts = finalize(out, info)
    return Written(made, time.perf_counter() - began, interrupted, counts)


def write_missing(
    out: Path, total: int, shard_size: int, samples: Callable[[range], Iterable[Sample]], lock: Lock, tell: Tell
) -> Iterator[int]:
    """Write and commit the shards that are missing; yields how many samples each has."""
    there = {n: marker.count for n in committed(out) if (marker := read_marker(out, n)) is not None}
    for number, first in enumerate(range(0, total, shard_size)):
        indices = range(first, min(first + shard_size, total))
        if there.get(number) == len(indices):
            tell("written", len(indices))
            continue
        began, group = time.perf_counter(), []
        withdraw(out, number)
        for sample in samples(indices):
            group.append(sample)
            tell("written", 1)
        lock.check()
        commit(out, stage(out, number, group, {}, time.perf_counter() - began, len(group)))
        yield len(group)
