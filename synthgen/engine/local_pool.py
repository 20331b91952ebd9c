"""A pool of one worker in this process: for debugging, and for machines without Ray."""

import traceback
from collections.abc import Iterable, Iterator

from synthgen.config.job import Job
from synthgen.engine.pool import Event, find_local_device
from synthgen.engine.scheduler import Schedule, Task
from synthgen.engine.worker import Progress, Worker, is_fatal, is_final
from synthgen.errors import remove_addresses
from synthgen.storage.base import Store


class LocalPool:
    """A pool (`synthgen.engine.pool.Pool`) that makes one shard after the other in this process."""

    def __init__(self, job: Job, store: Store) -> None:
        device = "cpu" if job.gpus == 0 else find_local_device(job)
        self.worker = Worker(job, store, device)
        self.schedule = Schedule(job.max_shard_attempts)

    def run(self, shards: Iterable[int]) -> Iterator[Event]:
        self.schedule.begin(shards)
        while (task := self.schedule.take()) is not None:
            yield from self._make_shard(task)

    def _make_shard(self, task: Task) -> Iterator[Event]:
        events = self.worker.make_shard(task.shard)
        while True:
            try:
                event = next(events, None)
            except Exception as error:
                if is_fatal(error):
                    raise
                yield Progress(task.shard, -task.reported_images)
                yield from self.schedule.fail(
                    task, _one_line(error), traceback.format_exc(), retry=not is_final(error)
                )
                return
            if event is None:
                return
            task.record(event)
            yield event

    def finish(self) -> None:
        self.schedule.finish()

    def close(self) -> None:
        """Do nothing: there is no worker process to stop."""


def _one_line(error: Exception) -> str:
    """Return the type and the message of an error on one line."""
    text = f"{type(error).__name__}: {remove_addresses(str(error))}"
    return " ".join(text.split())
