"""What makes shards: in this process, or as Ray actors."""

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
    """A shard that was given up.

    Attributes:
        attempts: how often it failed.
        error: the last failure in one line.
        traceback: of the last failure.
    """

    shard: int
    attempts: int
    error: str
    traceback: str


Event = Progress | StagedShard | FailedShard


class StoppedError(Exception):
    """The run cannot go on; what was committed stays, and the same command goes on from there."""


class Pool(Protocol):
    """Makes the shards it is given, in any order, and reports as it goes."""

    def run(self, shards: Iterable[int]) -> Iterator[Event]:
        """Progress of every batch, and each shard once: staged or failed.

        Raises:
            StoppedError: no worker can be had.
            OSError: there is no room for a shard.
        """

    def finish(self) -> None:
        """Begin no other shard; `run` ends with those that are begun. Called from a signal handler too."""

    def close(self) -> None:
        """Stop the workers."""


def local_device(job: Job) -> str:
    """ "cuda" if the pipeline runs on torch and a GPU is here, else "cpu"."""
    if not job.pipeline.uses_torch:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def worker_count(job: Job, room: int | None = None) -> int:
    """How many workers, never more than there are shards.

    Args:
        room: how many there is room for; None: on this machine, one for each GPU or each `threads` CPUs.
    """
    if isinstance(job.workers, int):
        return max(1, min(job.workers, job.shards))
    room = _local_room(job) if room is None else room
    least, most = job.workers or (1, room)
    return max(1, min(max(least, min(room, most)), job.shards))


def _local_room(job: Job) -> int:
    gpus = _gpus() if job.pipeline.uses_torch and job.gpus != 0 else 0
    return int(gpus / (job.gpus or 1)) if gpus else cpu_count() // job.threads


def cpu_count() -> int:
    """CPUs that this process may use; where the system does not tell, as on macOS, all that there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _gpus() -> int:
    """GPUs that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([v for v in visible.split(",") if v.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
