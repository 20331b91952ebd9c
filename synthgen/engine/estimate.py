"""Estimates of the cost of a whole job: from timing a few of its images, or from counting work.

Counted work needs neither the weights nor the GPU that the job will run on.
"""

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from synthgen.config.job import Job
from synthgen.engine.pool import count_workers, find_local_device
from synthgen.engine.worker import Worker, sample_scene
from synthgen.errors import InputError
from synthgen.pipelines.diffusion.models import LayoutModelSpec
from synthgen.storage.local import LocalStore

TAR_BYTES = 2048  # size of headers and padding around the two members of a sample
COUNTED_IMAGES = 4  # images of a job over which the work for an image is averaged
REACHED_SHARE = 0.25  # of a card's rate; assumed, not measured
PRICES_OF = "May 2026"


@dataclass(frozen=True)
class Card:
    """A kind of GPU.

    Attributes:
        tflop_per_second: rate of its tensor cores in float16 and bfloat16, without sparsity.
        dollars_per_hour: a typical price on demand, which is assumed.
    """

    name: str
    tflop_per_second: float
    dollars_per_hour: float


CARDS = (
    Card("T4", 65, 0.35),
    Card("L4", 121, 0.70),
    Card("RTX 4090", 165, 0.40),
    Card("A100", 312, 1.50),
    Card("H100", 989, 3.00),
)
"""The cards for which a job is estimated. The rates are those of NVIDIA's data sheets."""


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
        workers = f"{self.workers} worker(s) on {self.device}"
        timing = f"{self.seconds_per_image:.2f} s an image, timed on {self.timed_images}"
        return [
            f"canvas   {describe_canvas(self.canvas, self.generated_at)}",
            f"{self.images} images in {self.shards} shards, {workers}",
            f"time     {self.hours:.2f} hours{gpu} ({timing})",
            f"disk     {self.gigabytes:.3f} GB",
            f"memory   {self.worker_gigabytes:.2f} GB a worker",
        ]


@dataclass(frozen=True)
class CardEstimate:
    """What a whole job takes on cards of one kind, if `REACHED_SHARE` of their rate is reached.

    Attributes:
        card, dollars_per_hour: name and assumed price of the card.
        seconds_per_image, gpu_hours: the time of one card.
        dollars: the price of this time.
    """

    card: str
    dollars_per_hour: float
    seconds_per_image: float
    gpu_hours: float
    dollars: float


@dataclass(frozen=True)
class CountedPlan:
    """The counted work of a job, and what it takes on some cards.

    Not counted are text encoding, loading, verification, repairs, further attempts at an object or
    an image, and the windows with which a compiled UNet fills up a batch.

    Attributes:
        images: that of the job.
        counted_images: the number of images over which the work for an image is averaged.
        canvas, generated_at: as in `Plan`.
        passes_per_image: windows that go through the UNet.
        unet_tflop_per_image: floating-point operations of these passes, in 10^12.
        vae_tflop_per_image: those of encoding and decoding images.
        weight_gigabytes: size of the weights on a GPU.
        dtype: the number format on a GPU.
        reached_share: share of a card's rate that is assumed to be reached.
        prices_of: month of the assumed prices.
        cards: an estimate for each of `CARDS`; none for float32, which has other rates.
    """

    images: int
    counted_images: int
    canvas: tuple[int, int]
    generated_at: tuple[int, int]
    passes_per_image: float
    unet_tflop_per_image: float
    vae_tflop_per_image: float
    weight_gigabytes: float
    dtype: str
    reached_share: float
    prices_of: str
    cards: tuple[CardEstimate, ...]

    def lines(self) -> list[str]:
        """Return the plan as lines of text for the user."""
        unet = format_figure(self.unet_tflop_per_image)
        vae = format_figure(self.vae_tflop_per_image)
        passes = format_figure(self.passes_per_image)
        lines = [
            f"canvas   {describe_canvas(self.canvas, self.generated_at)}",
            f"{self.images} images, work counted on {self.counted_images}",
            f"passes   {passes} of the UNet an image, one for each window",
            f"work     {unet} TFLOP of the UNet and {vae} TFLOP of the autoencoder an image",
            f"weights  {self.weight_gigabytes:.3f} GB in {self.dtype}",
        ]
        for each in self.cards:
            seconds = format_figure(each.seconds_per_image)
            hours = format_figure(each.gpu_hours)
            price = f"${each.dollars:,.2f} at ${each.dollars_per_hour:.2f} an hour"
            lines.append(f"{each.card:<8} {seconds} s an image, {hours} GPU-hours, {price}")
        if not self.cards:
            return [*lines, "no time is estimated for float32, which has other rates"]
        return [
            *lines,
            f"estimates, not measurements: {self.reached_share:.0%} of each card's float16 rate, "
            f"prices of {self.prices_of}",
            "not counted: text encoding, loading, verification and repairs",
        ]


def describe_canvas(canvas: tuple[int, int], generated_at: tuple[int, int]) -> str:
    """Return the size of the images, and of the canvas that they are generated on, as text."""
    text = f"{canvas[0]} x {canvas[1]} px"
    if generated_at != canvas:
        text += f", generated at {generated_at[0]} x {generated_at[1]} px"
    return text


def format_figure(value: float) -> str:
    """Return a figure with three digits, or with all of them before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


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


def count(job: Job) -> CountedPlan:
    """Count the work of a job without loading weights, and estimate what it takes on `CARDS`.

    Raises:
        InputError: the method does not generate layouts with a checkpoint.
    """
    spec = job.pipeline
    if not isinstance(spec, LayoutModelSpec):
        raise InputError(
            f"pipeline.method: {spec.method} is not counted, only methods that generate a layout "
            "with a checkpoint; omit --count, to time a few images"
        )
    # It imports torch and diffusers.
    from synthgen.pipelines.diffusion.counting import count_work

    scenes = [sample_scene(job, index) for index in range(min(job.images, COUNTED_IMAGES))]
    counts = count_work(spec, scenes, job.scene.backgrounds is not None)
    unet_tflop = counts.unet_flop / 1e12
    vae_tflop = counts.vae_flop / 1e12
    cards = () if counts.dtype == "float32" else CARDS
    return CountedPlan(
        images=job.images,
        counted_images=counts.images,
        canvas=job.layout.canvas,
        generated_at=spec.generation_canvas(job.layout.canvas),
        passes_per_image=counts.passes,
        unet_tflop_per_image=unet_tflop,
        vae_tflop_per_image=vae_tflop,
        weight_gigabytes=counts.weight_bytes / 1e9,
        dtype=counts.dtype,
        reached_share=REACHED_SHARE,
        prices_of=PRICES_OF,
        cards=tuple(estimate_on_card(card, unet_tflop + vae_tflop, job.images) for card in cards),
    )


def estimate_on_card(card: Card, tflop: float, images: int) -> CardEstimate:
    """Estimate what images take on one card.

    Args:
        tflop: the work for an image, in 10^12 floating-point operations.
        images: number of images.
    """
    seconds = tflop / (card.tflop_per_second * REACHED_SHARE)
    hours = seconds * images / 3600
    return CardEstimate(
        card=card.name,
        dollars_per_hour=card.dollars_per_hour,
        seconds_per_image=seconds,
        gpu_hours=hours,
        dollars=hours * card.dollars_per_hour,
    )


def estimate_peak_bytes() -> int:
    """Return the peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
