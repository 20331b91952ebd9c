"""The worker, which generates one shard at a time, from layouts to files. It knows no Ray."""

import errno
import io
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from synthgen import heartbeat
from synthgen.annotations import Annotation
from synthgen.config.job import Job, OutputSpec
from synthgen.dataset.sample import Sample
from synthgen.dataset.shard import StagedShard, stage
from synthgen.dataset.versions import read_versions
from synthgen.engine.hardware import describe_hardware
from synthgen.errors import InputError, StoreFailedError, StoreRefusedError
from synthgen.geometry import xyxy_to_xywh
from synthgen.layouts.base import InfeasibleLayoutError
from synthgen.memory import free_memory, is_out_of_memory
from synthgen.pipelines.base import Numerics, Painting
from synthgen.randomness import Stream, seed_sequence, spawn_sequence
from synthgen.scenes.scene import Scene
from synthgen.storage.base import Store
from synthgen.verification.repair import Checked, Inspection

log = logging.getLogger(__name__)

BLANK_DEVIATION = 1.0  # standard deviation in grey levels up to which an image is blank
ENCODE_BATCHES = 2  # batches that are encoded, or wait for it, while the next one is generated
PIL_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


class RejectedImageError(Exception):
    """An image failed `max_attempts` times and the job says `on_reject: fail`."""


@dataclass(frozen=True)
class GeneratedImage:
    """A scene with its generated image.

    Attributes:
        attempt: the number of the attempt that the image comes from.
        checked: the verdict of the verifier, if the job has one.
        tries: the number of attempts that were made.
    """

    scene: Scene
    painting: Painting
    attempt: int
    checked: Checked | None = None
    attempts: int = 1

    @property
    def faults(self) -> float:
        """The number of failed boxes and false positives; infinite for a blank image."""
        if is_blank(self.painting):
            return float("inf")
        return 0 if self.checked is None else self.checked.faults


@dataclass(frozen=True)
class Progress:
    """How far the generation of a shard is.

    Attributes:
        images: the number of images that were generated since the last report. It is negative where
            a failed attempt is taken back.
        part: how much of the batch in progress is done, in images; a half of two images is 1.
        activity: what is done now, such as "denoising"; empty if it is not known.
        first_image: the encoded image of the worker's first sample, only after its first batch.
    """

    shard: int
    images: int
    part: float = 0.0
    activity: str = ""
    first_image: bytes | None = field(default=None, repr=False)


def sample_scene(job: Job, index: int) -> Scene:
    """Sample the layout and the scene of a sample; they are the same at every attempt.

    Raises:
        InfeasibleLayoutError: no layout was found; the message names the index and the seed.
    """
    try:
        layout = job.layout.sample(_random_generator(job, index, Stream.LAYOUT), index)
    except InfeasibleLayoutError as error:
        raise InfeasibleLayoutError(f"sample {index}, seed {job.seed}: {error}") from None
    return job.scene.draw(
        layout,
        _random_generator(job, index, Stream.SCENE),
        _random_generator(job, index, Stream.ATMOSPHERE),
    )


def _random_generator(job: Job, index: int, stream: Stream) -> np.random.Generator:
    return np.random.default_rng(seed_sequence(job.seed, index, stream))


class Worker:
    """A loaded pipeline that makes shards.

    Args:
        job: the validated job.
        store: where shards are staged.
        device: "cpu" or "cuda".
        tiled: whether images are decoded in tiles as by older versions, see `Numerics`.
    """

    def __init__(self, job: Job, store: Store, device: str = "cpu", tiled: bool = False) -> None:
        self.job = job
        self.store = store
        self.numerics = Numerics(
            job.batch_size,
            job.first_chunk,
            job.threads,
            device,
            job.pipeline.choose_dtype(device),
            read_versions(),
            job.files(),
            tiled=tiled,
        )
        self.ids = job.ids()
        self.has_shown_image = False
        limit_threads(job)
        self.load()
        hardware = describe_hardware(device, job.pipeline.uses_torch)
        self.numerics = replace(self.numerics, hardware=hardware)
        painter: Any = self.painter
        if job.chunk == "auto" and device == "cuda" and hasattr(painter, "measure_chunk"):
            self.numerics = replace(self.numerics, chunk=painter.measure_chunk())
            painter.use_chunk(self.numerics.chunk)

    def load(self) -> None:
        """Load the pipeline, and the verifier if the job has one."""
        self.inspection = None
        self.painter = self.job.pipeline.load(self.job.scene, self.numerics)
        if self.job.verify is not None:
            verifier = self.job.verify.load(self.numerics.device)
            self.inspection = Inspection(self.job.verify, verifier, self.painter)
            if "repair" in self.inspection.kinds and hasattr(self.painter, "use_verifier"):
                self.painter.use_verifier(self.inspection.find_failed_boxes)

    def make_shard(self, number: int) -> Iterator[Progress | StagedShard]:
        """Generate and stage one shard; yield progress after each batch, and the shard last.

        If memory runs out, the shard is generated again with half the chunk, which its marker then
        records. This worker keeps the smaller chunk.
        """
        while True:
            reported_images = 0
            try:
                for event in self._attempt_shard(number):
                    if isinstance(event, Progress):
                        reported_images += event.images
                    yield event
                return
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.numerics.chunk == 1:
                    raise
            log.warning(
                "shard %06d: out of memory with chunk %d; retrying with half of it",
                number,
                self.numerics.chunk,
            )
            yield Progress(number, -reported_images)
            self.halve_chunk()

    def halve_chunk(self) -> None:
        """Halve the chunk. A pipeline that must be loaded again for it is freed first."""
        self.numerics = replace(self.numerics, chunk=self.numerics.chunk // 2)
        use_chunk = getattr(self.painter, "use_chunk", None)
        if use_chunk is not None:
            use_chunk(self.numerics.chunk)
            free_memory()
            return
        del self.painter
        self.inspection = None
        free_memory()
        self.load()

    def _attempt_shard(self, number: int) -> Iterator[Progress | StagedShard]:
        """Generate and stage one shard.

        Batches are encoded in a thread while the next ones are generated. At most `ENCODE_BATCHES`
        of them wait as pixels in memory, however many images the shard has.
        """
        start = time.perf_counter()
        first_index = number * self.job.output.shard_size
        indices = range(first_index, first_index + self.job.images_in_shard(number))
        samples: list[Sample] = []
        encoding: deque[Future[list[Sample]]] = deque()
        attempts = 0
        with ThreadPoolExecutor(max_workers=1) as executor:
            for offset in range(0, len(indices), self.job.batch_size):
                batch = indices[offset : offset + self.job.batch_size]
                heartbeat.begin_batch(len(batch))
                images = self.paint(batch)
                heartbeat.begin_batch(0)
                encoding.append(executor.submit(self.encode, batch, images))
                attempts += sum(image.attempts for image in images)
                del images  # the encoder alone keeps the pixels in memory
                first_image = None
                if not self.has_shown_image:
                    self.has_shown_image = True
                    first_image = encoding[-1].result()[0].image
                yield Progress(number, len(batch), first_image=first_image)
                if len(encoding) == ENCODE_BATCHES:
                    samples += encoding.popleft().result()
            for future in encoding:
                samples += future.result()
        self.numerics = replace(
            self.numerics, tiled=getattr(self.painter, "tiled", self.numerics.tiled)
        )
        numerics = asdict(self.numerics)
        seconds = time.perf_counter() - start
        yield stage(self.store, number, samples, numerics, seconds, attempts)

    def paint(self, indices: Sequence[int]) -> list[GeneratedImage]:
        """Generate and verify a batch; an image that fails is generated again from new noise.

        Raises:
            RejectedImageError: an image failed at every attempt and the job says
                `on_reject: fail`.
        """
        scenes = [sample_scene(self.job, index) for index in indices]
        batch = self._attempt_batch(indices, scenes, 0)
        for attempt in range(1, self.job.max_attempts):
            failed = [k for k, image in enumerate(batch) if self._needs_retry(image)]
            if not failed:
                break
            failed_indices = [indices[k] for k in failed]
            failed_scenes = [scenes[k] for k in failed]
            retried = self._attempt_batch(failed_indices, failed_scenes, attempt)
            for k, new in zip(failed, retried, strict=True):
                old = batch[k]
                best = old if old.faults <= new.faults else new
                batch[k] = replace(best, attempts=attempt + 1)
        batch = [self._finish_labels(image) for image in batch]
        if self.job.on_reject == "fail":
            self._refuse_failed(indices, batch)
        return batch

    def _attempt_batch(
        self, indices: Sequence[int], scenes: Sequence[Scene], attempt: int
    ) -> list[GeneratedImage]:
        """Generate a batch once, and verify and repair it if the job asks for it."""
        seeds = [seed_sequence(self.job.seed, index, Stream.NOISE, attempt) for index in indices]
        paintings = self.painter(scenes, seeds)
        batch = []
        if self.inspection is None:
            for scene, painting in zip(scenes, paintings, strict=True):
                batch.append(GeneratedImage(scene, painting, attempt))
            return batch

        def repair_seed(k: int, number: int) -> np.random.SeedSequence:
            seed = seed_sequence(self.job.seed, indices[k], Stream.REPAIR, attempt)
            return spawn_sequence(seed, number)

        checks = self.inspection(scenes, paintings, repair_seed)
        for scene, checked in zip(scenes, checks, strict=True):
            batch.append(GeneratedImage(scene, checked.painting, attempt, checked))
        return batch

    def _needs_retry(self, image: GeneratedImage) -> bool:
        """Return whether a whole image is to be generated again."""
        if is_blank(image.painting):
            return True
        redo = self.inspection is not None and "redo" in self.inspection.kinds
        return redo and image.faults > 0

    def _finish_labels(self, image: GeneratedImage) -> GeneratedImage:
        """Return an image with its final labels."""
        if self.inspection is None or image.checked is None:
            return image
        checked = self.inspection.finish(image.checked)
        layout = checked.layout.with_phrases(image.scene.phrases)
        return replace(image, scene=replace(image.scene, layout=layout), checked=checked)

    def _refuse_failed(self, indices: Sequence[int], batch: Sequence[GeneratedImage]) -> None:
        """Raise RejectedImageError if images are blank, or have faults that may not be flagged."""
        flag = self.inspection is not None and "flag" in self.inspection.kinds
        blank = []
        faulty = []
        for index, image in zip(indices, batch, strict=True):
            if is_blank(image.painting):
                blank.append(index)
            if not flag and image.checked is not None and image.checked.faults:
                faulty.append(index)
        attempts = f"after {self.job.max_attempts} attempts"
        if blank:
            raise RejectedImageError(f"samples {blank}: blank {attempts}")
        if faulty:
            raise RejectedImageError(
                f"samples {faulty}: failed boxes or false positives {attempts}"
            )

    def encode(self, indices: Sequence[int], batch: Sequence[GeneratedImage]) -> list[Sample]:
        """Return the finished samples of a batch: with camera effects, and encoded."""
        samples = []
        for index, image in zip(indices, batch, strict=True):
            layout = image.scene.layout
            pixels, conditions = self._apply_camera(index, image)
            labels = build_annotations(image.scene, image.painting, self.ids, image.checked)
            sample = Sample(
                index=index,
                width=layout.width,
                height=layout.height,
                prompt=image.scene.prompt,
                seed=self.job.seed,
                attempt=image.attempt,
                annotations=tuple(labels),
                image=encode_image(pixels, self.job.output),
                image_format=self.job.output.image_format,
                verified=None if image.checked is None else image.checked.record(),
                conditions=conditions,
            )
            samples.append(sample)
        return samples

    def _apply_camera(
        self, index: int, image: GeneratedImage
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Return an image after the scene's camera, and its conditions.

        The conditions are those of the scene and of the camera; they are the same at every attempt.
        """
        pixels = image.painting.image
        conditions = dict[str, Any](image.scene.atmosphere)
        camera = self.job.scene.camera
        if camera is None:
            return pixels, conditions
        pixels, effects = camera(pixels, seed_sequence(self.job.seed, index, Stream.CAMERA))
        return pixels, conditions | effects


def is_final(error: BaseException | None) -> bool:
    """Return whether a shard that failed with this error would fail at every attempt."""
    return isinstance(error, RejectedImageError | InputError)


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether the error says that the disk is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_fatal(error: BaseException) -> bool:
    """Return whether no other shard could be written: the disk is full, or the store fails."""
    return is_disk_full(error) or isinstance(error, StoreFailedError | StoreRefusedError)


def limit_threads(job: Job) -> None:
    """Set the number of torch's CPU threads, on which its results depend, if the job uses torch."""
    if job.pipeline.uses_torch or job.verify is not None:
        import torch

        torch.set_num_threads(job.threads)


def is_blank(painting: Painting) -> bool:
    """Return whether an image shows nothing: it is black, or of one colour."""
    return float(painting.image[::4, ::4].std()) <= BLANK_DEVIATION


def encode_image(pixels: NDArray[np.uint8], output: OutputSpec) -> bytes:
    """Encode an image (H, W, 3) with the format and quality of the job's output."""
    options: dict[str, Any] = {}
    if output.image_format != "png":
        options["quality"] = output.quality
    if output.image_format == "jpg":
        options["subsampling"] = output.subsampling
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, PIL_FORMATS[output.image_format], **options)
    return buffer.getvalue()


def build_annotations(
    scene: Scene, painting: Painting, ids: dict[str, int], checked: Checked | None = None
) -> Iterator[Annotation]:
    """Yield the annotations of a generated scene.

    `area` is that of the mask if there is one, otherwise that of the box. An object with no visible
    pixel has no annotation, and neither has one whose label the layout leaves out.
    """
    layout = scene.layout
    boxes = xyxy_to_xywh(layout.boxes.astype(np.float64)).tolist()
    for i, (box, category) in enumerate(zip(boxes, layout.categories, strict=True)):
        if layout.labelled is not None and not layout.labelled[i]:
            continue
        mask = None if painting.masks is None else painting.masks[i]
        area = box[2] * box[3] if mask is None else float(coco_mask.area(mask))
        if mask is not None and not area:
            continue
        verdict = {} if checked is None else checked.annotation(i)
        yield Annotation(
            bbox=tuple(box),
            category_id=ids[category],
            category=category,
            phrase=scene.phrases[i],
            area=area,
            segmentation=mask,
            **verdict,
        )
