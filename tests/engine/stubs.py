"""What makes shards of nothing, and fails on demand; Ray's workers import it."""

import os
import signal
import time
from collections.abc import Iterator

from synthgen import heartbeat
from synthgen.config import Job
from synthgen.dataset.marker import Marker
from synthgen.dataset.shard import StagedShard
from synthgen.engine.pool import Event
from synthgen.engine.worker import Progress, RejectedImageError
from synthgen.storage.base import Store
from synthgen.storage.local import LocalStore


class Stub:
    """Makes a shard as the file `<out>/<shard>` says: "stop 1" stops this process, at the first attempt alone."""

    def __init__(self, job: Job, store: LocalStore, device: str) -> None:
        self.job, self.out, self.device = job, store.root, device

    def make_shard(self, number: int) -> Iterator[Event]:
        plan, tried = self.out / str(number), self.out / f"{number}.tried"
        with tried.open("a") as file:
            file.write(f"{os.getpid()}\n")
        what, *times = plan.read_text().split() if plan.exists() else ["make"]
        yield Progress(number, 1)
        if not times or len(tried.read_text().splitlines()) <= int(times[0]):
            getattr(self, what)()
        marker = Marker(self.job.shard_count(number), 0, 0, "", "", 0, "")
        yield StagedShard(number, "", "", marker)

    def make(self) -> None:
        time.sleep(0.01)

    def nap(self) -> None:
        time.sleep(0.2)

    def stop(self) -> None:
        time.sleep(0.5)  # until what was reported is sent
        os.kill(os.getpid(), signal.SIGSTOP)

    def die(self) -> None:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(self) -> None:
        raise ValueError("this shard is not to be made")

    def reject(self) -> None:
        raise RejectedImageError("samples [7]: blank after 3 attempts")

    def work(self) -> None:
        """Longer than the stall timeout, with signs of life."""
        for _ in range(25):
            time.sleep(0.1)
            heartbeat.beat()


class Unloadable:
    """A worker whose model is not there."""

    def __init__(self, job: Job, store: Store, device: str) -> None:
        raise FileNotFoundError("no such model")
