"""The assembly of a dataset from samples that already exist: those of an import or of a merge."""

import math
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any

from synthgen.dataset.finalise import begin_dataset
from synthgen.dataset.info import DatasetInfo
from synthgen.dataset.marker import scan_markers
from synthgen.dataset.sample import Sample
from synthgen.dataset.shard import StagedShard, stage
from synthgen.engine.driver import Work
from synthgen.storage.base import Store

Report = Callable[[str, int], object]
"""Called with what was done ("checked", "written") and how many more samples it was done to."""


class Assembly(Work):
    """A dataset of samples that already exist. One shard is in memory at a time.

    Args:
        job: the content of job.yaml.
        samples: returns the samples of a range of indices; called with ascending ranges.
        overwrite: remove the dataset that is in the output folder first.
        report: called with "written" and the number of samples that were written since.
    """

    def __init__(
        self,
        store: Store,
        info: DatasetInfo,
        job: dict[str, Any],
        shard_size: int,
        samples: Callable[[range], Iterable[Sample]],
        overwrite: bool,
        report: Report,
    ) -> None:
        super().__init__(store, info, overwrite)
        self.job = job
        self.shard_size = shard_size
        self.samples = samples
        self.report = report
        self.existing_samples = 0

    def shard_indices(self, number: int) -> range:
        """Return the indices of a shard's samples."""
        first = number * self.shard_size
        return range(first, min(first + self.shard_size, self.info.asked))

    def plan(self) -> list[int]:
        shard_files = self.claim()
        counts = {}
        for number, marker in scan_markers(self.store, shard_files):
            counts[number] = marker.count
        missing = []
        self.existing_samples = self.info.asked
        for number in range(math.ceil(self.info.asked / self.shard_size)):
            count = len(self.shard_indices(number))
            if counts.get(number) != count:
                missing.append(number)
                self.existing_samples -= count
        return missing

    def begin(self, shards: list[int]) -> None:
        begin_dataset(self.store, self.info, self.job)
        if self.existing_samples:
            self.report("written", self.existing_samples)

    def make(self, shards: Iterable[int]) -> Generator[StagedShard, None, None]:
        for number in shards:
            start = time.perf_counter()
            group: list[Sample] = []
            for sample in self.samples(self.shard_indices(number)):
                group.append(sample)
                self.report("written", 1)
            seconds = time.perf_counter() - start
            yield stage(self.store, number, group, {}, seconds, len(group))
