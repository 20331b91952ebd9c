"""One worker in this process: for debugging, and for machines without Ray."""

import traceback
from collections.abc import Iterable, Iterator

from synthgen.config.job import Job
from synthgen.engine.pool import Event, local_device
from synthgen.engine.scheduler import Schedule, Task
from synthgen.engine.worker import Progress, Worker, ends_all, is_final
from synthgen.errors import without_addresses
from synthgen.storage.base import Store


class LocalPool:
    """Makes one shard after the other with a worker of its own; a pool as `synthgen.engine.pool.Pool` says."""

    def __init__(self, job: Job, store: Store) -> None:
        self.worker = Worker(job, store, "cpu" if job.gpus == 0 else local_device(job))
        self.schedule = Schedule(job.max_shard_attempts)

    def run(self, shards: Iterable[int]) -> Iterator[Event]:
        self.schedule.begin(shards)
        while (task := self.schedule.take()) is not None:
            yield from self._make(task)

    def _make(self, task: Task) -> Iterator[Event]:
        events = self.worker.make_shard(task.shard)
        while True:
            try:
                event = next(events, None)
            except Exception as error:
                if ends_all(error):
                    raise
                yield Progress(task.shard, -task.painted)
                yield from self.schedule.failed(
                    task, _line(error), traceback.format_exc(), again=not is_final(error)
                )
                return
            if event is None:
                return
            task.note(event)
            yield event

    def finish(self) -> None:
        self.schedule.finish()

    def close(self) -> None:
        """Nothing to stop."""


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {without_addresses(str(error))}".split())
