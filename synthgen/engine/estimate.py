"""An estimate of the cost of a whole job, from timing a few of its images."""

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from synthgen.config.job import Job
from synthgen.engine.pool import count_workers, find_local_device
from synthgen.engine.worker import Worker
from synthgen.storage.local import LocalStore

TAR_BYTES = 2048  # size of headers and padding around the two members of a sample


@dataclass(frozen=True)
class Plan:
    """Estimates for a whole job.

    Attributes:
        images, shards, workers, device: those of the job.
        load_seconds: the time in which a worker loads its models.
        seconds_per_image: the time of one worker alone on this machine.
        hours: the time of `workers` workers that do not slow each other down.
        gpu_hours: 0 on a CPU.
        gigabytes: the size of the finished dataset.
        worker_gigabytes: the peak memory of one worker.
        timed_images: the number of images that the estimate rests on.
        canvas, generated_at: width and height in px of the images, and of the canvas that they are
            generated on.
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
        """Return the plan as lines of text for the user."""
        gpu = f", {self.gpu_hours:.2f} GPU-hours" if self.gpu_hours else ""
        canvas = f"{self.canvas[0]} x {self.canvas[1]} px"
        if self.generated_at != self.canvas:
            canvas += f", generated at {self.generated_at[0]} x {self.generated_at[1]} px"
        workers = f"{self.workers} worker(s) on {self.device}"
        timing = f"{self.seconds_per_image:.2f} s an image, timed on {self.timed_images}"
        return [
            f"canvas   {canvas}",
            f"{self.images} images in {self.shards} shards, {workers}",
            f"time     {self.hours:.2f} hours{gpu} ({timing})",
            f"disk     {self.gigabytes:.3f} GB",
            f"memory   {self.worker_gigabytes:.2f} GB a worker",
        ]


def plan(job: Job) -> Plan:
    """Generate and encode one batch in this process, and extrapolate.

    Nothing is written to the output folder.
    """
    batch = range(min(job.batch_size, job.images))
    with TemporaryDirectory() as scratch:
        start = time.perf_counter()
        device = find_local_device(job)
        worker = Worker(job, LocalStore(Path(scratch)), device)
        load_seconds = time.perf_counter() - start
        start = time.perf_counter()
        samples = worker.encode(batch, worker.paint(batch))
        seconds_per_image = (time.perf_counter() - start) / len(batch)
    sample_bytes = 0
    for sample in samples:
        sample_bytes += len(sample.image) + len(sample.json()) + TAR_BYTES
    workers = count_workers(job)
    hours = (load_seconds + seconds_per_image * job.images / workers) / 3600
    return Plan(
        images=job.images,
        shards=job.shards,
        workers=workers,
        device=device,
        load_seconds=round(load_seconds, 3),
        seconds_per_image=round(seconds_per_image, 3),
        hours=round(hours, 4),
        gpu_hours=round(hours * workers, 4) if device == "cuda" else 0.0,
        gigabytes=round(sample_bytes / len(samples) * job.images / 1e9, 4),
        worker_gigabytes=round(estimate_peak_bytes() / 1e9, 3),
        timed_images=len(batch),
        canvas=job.layout.canvas,
        generated_at=job.pipeline.generation_canvas(job.layout.canvas),
    )


def estimate_peak_bytes() -> int:
    """Return the peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
