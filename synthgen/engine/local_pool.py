"""A pool of one worker in this process: for debugging, and for machines without Ray."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from synthgen import heartbeat
from synthgen.config.job import Job
from synthgen.engine.pool import Event, find_local_device
from synthgen.engine.scheduler import Schedule, Task
from synthgen.engine.worker import Progress, Worker, is_fatal, is_final
from synthgen.errors import remove_addresses
from synthgen.storage.base import Store


class LocalPool:
    """A pool (`synthgen.engine.pool.Pool`) that makes one shard after the other in this process.

    Args:
        watch: called with the progress of a batch while it is generated.
    """

    def __init__(
        self, job: Job, store: Store, watch: Callable[[Progress], object] | None = None
    ) -> None:
        self.watch = watch
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
                with heartbeat.watch(partial(self._report, task.shard)):
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

    def _report(self, shard: int, pulse: heartbeat.Pulse) -> None:
        if self.watch is not None:
            self.watch(Progress(shard, 0, pulse.part, pulse.activity))

    def finish(self) -> None:
        self.schedule.finish()

    def close(self) -> None:
        """Do nothing: there is no worker process to stop."""


def _one_line(error: Exception) -> str:
    """Return the type and the message of an error on one line."""
    text = f"{type(error).__name__}: {remove_addresses(str(error))}"
    return " ".join(text.split())
