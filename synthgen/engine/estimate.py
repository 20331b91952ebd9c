"""What a whole job will take, from timing a few of its images."""

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from synthgen.config.job import Job
from synthgen.engine.pool import local_device, worker_count
from synthgen.engine.worker import Worker
from synthgen.storage.local import LocalStore


@dataclass(frozen=True)
class Plan:
    """Estimates for a whole job.

    Attributes:
        images, shards, workers, device: of the job.
        seconds_per_image: of one worker alone on this machine.
        hours: with `workers` workers that do not slow each other down.
        gpu_hours: 0 on a CPU.
        gigabytes: of the finished dataset.
        worker_gigabytes: peak memory of one worker.
        timed_images: what the estimate rests on.
        canvas, generated_at: width and height in px of the images, and of the canvas that they are generated on.
    """

    images: int
    shards: int
    workers: int
    device: str
    load_seconds: float
    seconds_per_image: float
    hours: float
    gpu_hours: float
    gigabytes: float
    worker_gigabytes: float
    timed_images: int
    canvas: tuple[int, int]
    generated_at: tuple[int, int]

    def lines(self) -> list[str]:
        """The plan for a person."""
        gpu = f", {self.gpu_hours:.2f} GPU-hours" if self.gpu_hours else ""
        canvas = f"{self.canvas[0]} x {self.canvas[1]} px"
        if self.generated_at != self.canvas:
            canvas += f", generated at {self.generated_at[0]} x {self.generated_at[1]} px"
        return [
            f"canvas   {canvas}",
            f"{self.images} images in {self.shards} shards, {self.workers} worker(s) on {self.device}",
            f"time     {self.hours:.2f} hours{gpu} ({self.seconds_per_image:.2f} s an image, timed on {self.timed_images})",
            f"disk     {self.gigabytes:.3f} GB",
            f"memory   {self.worker_gigabytes:.2f} GB a worker",
        ]


def plan(job: Job) -> Plan:
    """Paint and encode one batch here, in this process, and extrapolate; writes nothing to the output folder."""
    with TemporaryDirectory() as scratch:
        began = time.perf_counter()
        device = local_device(job)
        worker = Worker(job, LocalStore(Path(scratch)), device)
        loaded = time.perf_counter()
        batch = range(min(job.batch_size, job.images))
        samples = worker.encode(batch, worker.paint(batch))
        seconds = (time.perf_counter() - loaded) / len(batch)
    workers = worker_count(job)
    size = sum(len(s.image) + len(s.json()) + 2048 for s in samples) / len(samples)
    hours = (loaded - began + seconds * job.images / workers) / 3600
    return Plan(
        job.images, job.shards, workers, device, round(loaded - began, 3), round(seconds, 3), round(hours, 4),
        round(hours * workers, 4) if device == "cuda" else 0.0, round(size * job.images / 1e9, 4),
        round(peak_bytes() / 1e9, 3), len(batch), job.layout.canvas, job.pipeline.generation_canvas(job.layout.canvas),
    )  # fmt: skip


def peak_bytes() -> int:
    """Peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
