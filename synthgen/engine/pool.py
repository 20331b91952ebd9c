"""The interface of pools of workers, and how many workers a job gets."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from synthgen.config.job import Job
from synthgen.dataset.shard import StagedShard
from synthgen.engine.worker import Progress


@dataclass(frozen=True)
class FailedShard:
    """A shard that failed at every attempt.

    Attributes:
        shard: the number of the shard.
        attempts: how many attempts failed.
        error: the last error on one line.
        traceback: the traceback of the last error.
    """

    shard: int
    attempts: int
    error: str
    traceback: str


Event = Progress | StagedShard | FailedShard


class StoppedError(Exception):
    """The run cannot continue. Committed shards stay; the same command continues from there."""


class Pool(Protocol):
    """A pool of workers, in this process or as Ray actors, that makes shards in any order."""

    def run(self, shards: Iterable[int]) -> Iterator[Event]:
        """Yield the progress of every batch, and each shard once, staged or failed.

        Raises:
            StoppedError: no worker can be started.
            OSError: the disk is full.
        """

    def finish(self) -> None:
        """Start no more shards; `run` ends after those in progress.

        It may be called from a signal handler.
        """

    def close(self) -> None:
        """Stop the workers."""


def find_local_device(job: Job) -> str:
    """Return "cuda" if the pipeline runs on torch and this machine has a GPU, otherwise "cpu"."""
    if not job.pipeline.uses_torch:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def count_workers(job: Job, room: int | None = None) -> int:
    """Return the number of workers of a job; it never exceeds the number of shards.

    Args:
        room: how many workers fit; None to count this machine's GPUs, or its CPUs in groups of
            `threads`.
    """
    if isinstance(job.workers, int):
        return max(1, min(job.workers, job.shards))
    if room is None:
        room = _local_room(job)
    least, most = job.workers or (1, room)
    count = max(least, min(room, most))
    return max(1, min(count, job.shards))


def _local_room(job: Job) -> int:
    """Return how many workers fit on this machine."""
    gpus = _gpu_count() if job.pipeline.uses_torch and job.gpus != 0 else 0
    if gpus:
        return int(gpus / (job.gpus or 1))
    return count_cpus() // job.threads


def count_cpus() -> int:
    """Return the number of CPUs that this process may use.

    Where the operating system has no CPU affinity, as on macOS, it is the number of all CPUs.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is not None:
        return len(affinity(0))
    return os.cpu_count() or 1


def _gpu_count() -> int:
    """Return the number of GPUs that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    devices = [device.strip() for device in visible.split(",")]
    return sum(device not in ("", "-1") for device in devices)
