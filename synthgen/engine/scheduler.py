"""The schedule of a pool: which shard is next, and whether a failed one is retried.

It knows neither Ray nor files.
"""

import logging
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from synthgen.engine.pool import Event, FailedShard
from synthgen.engine.worker import Progress

log = logging.getLogger(__name__)


@dataclass
class Task:
    """One attempt at a shard.

    Attributes:
        attempts: the number of earlier attempts, which failed.
        nodes: the nodes on which they failed.
        reported_images: the images of this attempt that the progress bar shows; they are taken back
            if it fails.
    """

    shard: int
    attempts: int = 0
    nodes: frozenset[str] = frozenset()
    reported_images: int = 0

    def record(self, event: Event) -> None:
        """Count the images that an event reports."""
        if isinstance(event, Progress):
            self.reported_images += event.images


class Schedule:
    """Hands out shards in order; a failed one before new ones, and on another node if there is one.

    However many shards there are, only those in progress and a few more are in memory.

    Args:
        max_attempts: the number of failed attempts after which a shard is not retried.
    """

    def __init__(self, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self.new_shards: Iterator[int] = iter(())
        self.next_shards: deque[int] = deque()
        self.retries: list[Task] = []
        self.finishing = False

    def begin(self, shards: Iterable[int]) -> None:
        """Set the shards to hand out."""
        self.new_shards = iter(shards)

    def finish(self) -> None:
        """Hand out no more shards."""
        self.finishing = True

    def count_waiting(self, limit: int) -> int:
        """Return the number of shards that wait for a worker, counted up to `limit`."""
        if self.finishing:
            return 0
        lacking = limit - len(self.retries) - len(self.next_shards)
        self.next_shards.extend(islice(self.new_shards, max(0, lacking)))
        return min(limit, len(self.retries) + len(self.next_shards))

    def take(self, node: str = "", nodes: Collection[str] = ()) -> Task | None:
        """Return the next task for a worker, or None if there is none for it.

        Args:
            node: the node of the worker.
            nodes: all nodes that have workers.
        """
        if not self.count_waiting(len(self.retries) + 1):
            return None
        for task in self.retries:
            if node not in task.nodes or task.nodes.issuperset(nodes):
                self.retries.remove(task)
                return task
        if not self.next_shards:
            return None
        return Task(self.next_shards.popleft())

    def requeue(self, task: Task, reason: str) -> None:
        """Retry a shard that was lost through no fault of its own, such as with its node."""
        log.warning("shard %06d: %s; retrying elsewhere", task.shard, reason)
        self.retries.append(Task(task.shard, task.attempts, task.nodes))

    def fail(
        self, task: Task, error: str, traceback: str, retry: bool = True, node: str = ""
    ) -> Iterator[FailedShard]:
        """Retry a shard that failed, or yield it as failed if there are no attempts left.

        Args:
            retry: another attempt may succeed.
            node: the node on which it failed.
        """
        attempts = task.attempts + 1
        if retry and attempts < self.max_attempts:
            log.warning(
                "shard %06d: %s; attempt %d of %d follows",
                task.shard,
                error,
                attempts + 1,
                self.max_attempts,
            )
            self.retries.append(Task(task.shard, attempts, task.nodes | {node}))
        else:
            yield FailedShard(task.shard, attempts, error, traceback)
