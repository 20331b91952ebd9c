"""The driver: the one loop that makes the missing shards of a dataset, commits and finalizes them.

`drive` runs a `Work`: the `Generation` of a job (`generation.py`), the `Assembly` of existing
samples by an import or a merge (`assembly.py`), or a repair (`repair.py`).
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from synthgen.dataset.finalise import finalize, remove_dataset, remove_temporary_files
from synthgen.dataset.info import DatasetInfo, refuse_changed
from synthgen.dataset.marker import list_shard_files
from synthgen.dataset.shard import StagedShard, commit, withdraw
from synthgen.engine.pool import FailedShard, StoppedError
from synthgen.engine.termination import NoTimeError
from synthgen.engine.worker import is_disk_full
from synthgen.storage.base import Store
from synthgen.storage.lock import Lock


@dataclass(frozen=True)
class RunResult:
    """What a run, a merge or an import did.

    Attributes:
        made: images that were generated or written.
        interrupted: the work was stopped by Ctrl-C or SIGTERM.
        counts: what the dataset holds now, from `finalize`; empty if SIGTERM left no time for it.
        terminated: the work was stopped by SIGTERM.
        failed: shards that failed at every attempt.
    """

    made: int
    seconds: float
    interrupted: bool
    counts: dict[str, Any]
    terminated: bool = False
    failed: Sequence[FailedShard] = ()


@dataclass
class WorkState:
    """The state of a `Work` while it runs.

    Attributes:
        images: images in the shards that were committed.
        stopped: the error that stopped the work.
        counts: what the dataset holds now; empty until it is finalized.
    """

    images: int = 0
    interrupted: bool = False
    stopped: Exception | None = None
    counts: dict[str, Any] = field(default_factory=dict)


class Work(ABC):
    """What a driver works on: which shards of a dataset it makes, and how.

    Args:
        store: where the dataset is stored.
        info: the content of dataset.json.
        overwrite: remove the dataset that is in the output first.

    Attributes:
        existing_shards: numbers of the shards that have any file in the output. A shard among them
            is withdrawn from the dataset before it is made again.
        resumable: after Ctrl-C or on a full disk, the committed shards are finalized, and the same
            command continues from there.
    """

    resumable = True

    def __init__(self, store: Store, info: DatasetInfo, overwrite: bool = False) -> None:
        self.store = store
        self.info = info
        self.overwrite = overwrite
        self.existing_shards: Container[int] = ()

    def open(self) -> AbstractContextManager[None]:
        """Return a context manager that is entered while the lock is held."""
        return nullcontext()

    def claim(self) -> dict[int, dict[str, int]]:
        """Return the files of the shards in the output, and remember the shards.

        The files are the result of `list_shard_files`.

        Raises:
            ChangedJobError: the output holds another job.
        """
        if self.overwrite:
            remove_dataset(self.store)
        refuse_changed(self.store, self.info)
        shard_files = list_shard_files(self.store)
        self.existing_shards = shard_files
        return shard_files

    @abstractmethod
    def plan(self) -> list[int]:
        """Return the numbers of the shards to make, ascending.

        Raises:
            ChangedJobError: the output holds another job.
        """

    @abstractmethod
    def begin(self, shards: list[int]) -> None:
        """Write the files that must exist before the first shard.

        Args:
            shards: the result of `plan`.
        """

    @abstractmethod
    def make(self, shards: Iterable[int]) -> Generator[StagedShard, None, None]:
        """Make shards and yield each one staged; the driver commits it before it asks for the next.

        Args:
            shards: the result of `plan`. Taking a number withdraws an older shard of that number.
        """

    def finalise(self, state: WorkState) -> dict[str, Any]:
        """Write the files beside the shards, and return what the dataset holds now."""
        return finalize(self.store, self.info)

    def end(self, state: WorkState, seconds: float) -> RunResult:
        """Return the result, or raise the error that stopped the work."""
        if state.stopped is not None:
            raise state.stopped
        return RunResult(state.images, seconds, state.interrupted, state.counts)


def drive(work: Work) -> RunResult:
    """Make the missing shards, commit each one, and write the files beside them.

    Raises:
        LockedError: another run works on the output, or has taken it over; in the second case
            nothing more is committed.
        ChangedJobError: the output holds another job.
    """
    start = time.perf_counter()
    state = WorkState()
    with Lock(work.store) as lock, work.open():
        with suppress(NoTimeError):
            remove_temporary_files(work.store)
            shards = work.plan()
            work.begin(shards)
            if shards:
                commit_shards(work, shards, lock, state)
            lock.check()
            remove_temporary_files(work.store)
            state.counts = work.finalise(state)
        return work.end(state, time.perf_counter() - start)


def commit_shards(work: Work, shards: Iterable[int], lock: Lock, state: WorkState) -> None:
    """Make and commit shards until all are done, or until a signal or a full disk stops it."""
    try:
        with closing(work.make(_withdraw_each(work, shards, lock))) as staged:
            for shard in staged:
                lock.check()
                commit(work.store, shard)
                state.images += shard.marker.count
    except KeyboardInterrupt:
        if not work.resumable:
            raise
        state.interrupted = True
    except StoppedError as error:
        state.stopped = error
    except OSError as error:
        if not (work.resumable and is_disk_full(error)):
            raise
        state.stopped = error


def _withdraw_each(work: Work, numbers: Iterable[int], lock: Lock) -> Iterator[int]:
    """Yield shard numbers, and withdraw any older shard of a number before yielding it."""
    for number in numbers:
        if number in work.existing_shards:
            lock.check()
            withdraw(work.store, number)
        yield number
