"""Workers that make shards: in this process, or as Ray actors. The only place that knows Ray."""

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from synthgen.config import Job
from synthgen.engine.worker import Progress, RejectedImageError, Worker
from synthgen.shards.shard import StagedShard
from synthgen.shards.store import Out, refuse_unshared

log = logging.getLogger(__name__)

Event = Progress | StagedShard
MAX_SHARD_ATTEMPTS = 3
POLL_SECONDS = 1.0  # how soon a Ctrl-C is noticed


class ShardFailedError(Exception):
    """A shard failed on every worker that tried it; the message ends with the cause."""


class Pool(Protocol):
    """Makes the shards it is given, in any order, and reports as it goes."""

    def run(self, shards: Iterable[int]) -> Iterator[Event]:
        """Progress of every batch, and each staged shard once."""

    def close(self) -> None:
        """Stop the workers."""


class LocalPool:
    """One worker in this process: for debugging, and for machines without Ray."""

    def __init__(self, job: Job, out: Out) -> None:
        self.worker = Worker(job, out, local_device(job))

    def run(self, shards: Iterable[int]) -> Iterator[Event]:
        for shard in shards:
            try:
                yield from self.worker.make_shard(shard)
            except RejectedImageError as error:
                raise ShardFailedError(f"shard {shard:06d}: {error}") from error

    def close(self) -> None:
        """Nothing to stop."""


@dataclass
class _Task:
    """A shard on an actor; `painted` is what the progress bar was told, to be taken back if it fails."""

    shard: int
    actor: Any
    attempt: int
    painted: int = 0


class RayPool:
    """Ray actors that each hold a loaded pipeline; a shard whose actor dies or fails goes to another one.

    Args:
        job: what every worker makes shards of.
        out: the output folder, which every worker gets.
        workers: how many actors.
        address: of a running cluster; None starts Ray on this machine.
    """

    def __init__(self, job: Job, out: Out, workers: int, address: str | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self.ray, self.job, self.out, self.workers = ray, job, out, workers
        self.remote = ray.remote(Worker)
        self._start(address or os.environ.get("RAY_ADDRESS"))
        refuse_unshared(out, job.output.shared, sum(node["Alive"] for node in ray.nodes()))
        self.device = "cuda" if job.pipeline.uses_torch and ray.cluster_resources().get("GPU", 0) > 0 else "cpu"

    def _start(self, address: str | None) -> None:
        if self.ray.is_initialized():
            return
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address is None:
            cpus = max(1, self.workers * self.job.threads)
            options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": 128 * 2**20}
        self.ray.init(address=address or "local", **options)

    def run(self, shards: Iterable[int]) -> Iterator[Event]:
        waiting = deque((shard, 1) for shard in shards)
        idle = deque(self._actor() for _ in range(min(self.workers, len(waiting))))
        running: dict[Any, _Task] = {}
        while waiting or running:
            while idle and waiting:
                shard, attempt = waiting.popleft()
                task = _Task(shard, idle.popleft(), attempt)
                stream = task.actor.make_shard.options(num_returns="streaming").remote(shard)
                running[stream] = task
            ready, _ = self.ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS, fetch_local=False)
            for stream in ready:
                yield from self._advance(stream, running, idle, waiting)

    def _advance(
        self, stream: Any, running: dict[Any, _Task], idle: deque[Any], waiting: deque[tuple[int, int]]
    ) -> Iterator[Event]:
        """Take the next report of one shard; a finished one frees its actor, a failed one goes back to the queue."""
        task = running[stream]
        try:
            event: Event = self.ray.get(next(stream))
        except StopIteration:
            idle.append(running.pop(stream).actor)
        except self.ray.exceptions.RayActorError as error:
            self._retry(running.pop(stream), waiting, error)
            idle.append(self._actor())
            yield Progress(task.shard, -task.painted)
        except self.ray.exceptions.RayTaskError as error:
            self._retry(running.pop(stream), waiting, error)
            idle.append(task.actor)
            yield Progress(task.shard, -task.painted)
        else:
            task.painted += event.images if isinstance(event, Progress) else 0
            yield event

    def _retry(self, task: _Task, waiting: deque[tuple[int, int]], error: Exception) -> None:
        if task.attempt >= MAX_SHARD_ATTEMPTS:
            raise ShardFailedError(f"shard {task.shard:06d} failed {task.attempt} times; the last time: {error}") from error
        why = str(error).strip().splitlines()[-1]
        log.warning(
            "shard %06d: attempt %d of %d failed; it goes elsewhere: %s", task.shard, task.attempt, MAX_SHARD_ATTEMPTS, why
        )
        waiting.append((task.shard, task.attempt + 1))

    def _actor(self) -> Any:
        gpus = 1 if self.device == "cuda" else 0
        return self.remote.options(num_cpus=self.job.threads, num_gpus=gpus).remote(self.job, self.out, self.device)

    def close(self) -> None:
        self.ray.shutdown()


def local_device(job: Job) -> str:
    """ "cuda" if the pipeline runs on torch and a GPU is here, else "cpu"."""
    if not job.pipeline.uses_torch:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def open_pool(job: Job, out: Out, address: str | None = None) -> Pool:
    """The pool that `workers` asks for: 0 in this process; a number, [least, most] or null on Ray."""
    if job.workers == 0:
        return LocalPool(job, out)
    return RayPool(job, out, worker_count(job, address), address)


def worker_count(job: Job, address: str | None) -> int:
    """How many actors: never more than there are shards; null means one for each `threads` CPUs (or GPU) here."""
    asked = job.workers[1] if isinstance(job.workers, tuple) else job.workers
    if asked is None:
        asked = _gpus() if job.pipeline.uses_torch and _gpus() else max(1, len(os.sched_getaffinity(0)) // job.threads)
    return max(1, min(asked, job.shards))


def _gpus() -> int:
    """GPUs that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([v for v in visible.split(",") if v.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
