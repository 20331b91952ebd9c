"""Which shard is made next, and what becomes of one that failed. Knows neither Ray nor files."""

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
    """A shard to make.

    Attributes:
        attempts: how often it failed.
        nodes: where it failed.
        painted: what the progress bar was told of this attempt, to be taken back if it fails.
    """

    shard: int
    attempts: int = 0
    nodes: frozenset[str] = frozenset()
    painted: int = 0

    def note(self, event: Event) -> None:
        self.painted += event.images if isinstance(event, Progress) else 0


class Schedule:
    """Hands out shards in order; one that failed goes before new ones, and elsewhere where there is an elsewhere.

    Holds what is in work and a few shards ahead, however many there are.

    Args:
        most_attempts: failures after which a shard is given up.
    """

    def __init__(self, most_attempts: int) -> None:
        self.most_attempts = most_attempts
        self.fresh: Iterator[int] = iter(())
        self.ahead: deque[int] = deque()
        self.again: list[Task] = []
        self.finishing = False

    def begin(self, shards: Iterable[int]) -> None:
        self.fresh = iter(shards)

    def finish(self) -> None:
        """Hand out nothing more."""
        self.finishing = True

    def waiting(self, most: int) -> int:
        """How many shards wait for a worker; of more than `most` just that many are counted."""
        if self.finishing:
            return 0
        self.ahead.extend(islice(self.fresh, max(0, most - len(self.again) - len(self.ahead))))
        return min(most, len(self.again) + len(self.ahead))

    def take(self, node: str = "", nodes: Collection[str] = ()) -> Task | None:
        """The next shard for a worker on `node`, when there are workers on `nodes`; None: there is none for it."""
        if not self.waiting(len(self.again) + 1):
            return None
        for task in self.again:
            if node not in task.nodes or task.nodes.issuperset(nodes):
                self.again.remove(task)
                return task
        return Task(self.ahead.popleft()) if self.ahead else None

    def lost(self, task: Task, why: str) -> None:
        """Do a shard again that was lost through no fault of its own, such as with its node."""
        log.warning("shard %06d: %s; again elsewhere", task.shard, why)
        self.again.append(Task(task.shard, task.attempts, task.nodes))

    def failed(
        self, task: Task, why: str, traceback: str, again: bool = True, node: str = ""
    ) -> Iterator[FailedShard]:
        """Do a shard again that failed on `node`, or give it up.

        Args:
            again: whether another attempt may end otherwise.
        """
        attempts = task.attempts + 1
        if again and attempts < self.most_attempts:
            log.warning(
                "shard %06d: %s; attempt %d of %d follows",
                task.shard,
                why,
                attempts + 1,
                self.most_attempts,
            )
            self.again.append(Task(task.shard, attempts, task.nodes | {node}))
        else:
            yield FailedShard(task.shard, attempts, why, traceback)
