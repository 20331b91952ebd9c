"""Stubs of workers that make empty shards and fail on demand; Ray's workers import them."""

import hashlib
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
    """A worker that does what the file `<out>/<shard>` says before it makes the shard.

    "stop 1" stops this process, but only at the first attempt.
    """

    def __init__(self, job: Job, store: LocalStore, device: str) -> None:
        self.job = job
        self.out = store.root
        self.device = device

    def make_shard(self, number: int) -> Iterator[Event]:
        plan_file = self.out / str(number)
        attempts_file = self.out / f"{number}.tried"
        with attempts_file.open("a") as file:
            file.write(f"{os.getpid()}\n")
        action, *attempts = plan_file.read_text().split() if plan_file.exists() else ["make"]
        yield Progress(number, 1)
        if not attempts or len(attempts_file.read_text().splitlines()) <= int(attempts[0]):
            getattr(self, action)()
        marker = Marker(self.job.images_in_shard(number), 0, 0, "", "", 0, "")
        yield StagedShard(number, "", "", marker)

    def make(self) -> None:
        time.sleep(0.01)

    def nap(self) -> None:
        time.sleep(0.2)

    def stop(self) -> None:
        time.sleep(0.5)  # until the reported events are sent
        os.kill(os.getpid(), signal.SIGSTOP)

    def die(self) -> None:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(self) -> None:
        raise ValueError("this shard is not to be made")

    def reject(self) -> None:
        raise RejectedImageError("samples [7]: blank after 3 attempts")

    def token(self) -> None:
        """Write the hash of the token for the Hub, because no file may contain the token."""
        token = os.environ.get("HF_TOKEN", "")
        (self.out / "token").write_text(hashlib.sha256(token.encode()).hexdigest())

    def work(self) -> None:
        """Work longer than the stall timeout, with heartbeats."""
        for _ in range(25):
            time.sleep(0.1)
            heartbeat.record_beat()


class Unloadable:
    """A worker whose model does not exist."""

    def __init__(self, job: Job, store: Store, device: str) -> None:
        raise FileNotFoundError("no such model")
