"""Makes one shard at a time: layouts, scenes, pictures, files. Knows nothing of Ray."""

import io
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from synthgen.config import Job
from synthgen.layouts import InfeasibleLayoutError
from synthgen.pipelines import Numerics, Painting
from synthgen.scene import Scene
from synthgen.shards.dataset import versions
from synthgen.shards.sample import Sample
from synthgen.shards.shard import StagedShard, stage

log = logging.getLogger(__name__)

LAYOUT_STREAM, SCENE_STREAM, NOISE_STREAM = 0, 1, 2
BLANK_DEVIATION = 1.0  # grey levels; a picture with less is not a picture
PIL_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


class RejectedImageError(Exception):
    """An image failed `max_attempts` times and the job says `on_reject: fail`."""


@dataclass(frozen=True)
class Progress:
    """So many images of a shard were painted since the last report."""

    shard: int
    images: int


def seed_sequence(seed: int, index: int, stream: int, attempt: int = 0) -> np.random.SeedSequence:
    """The randomness of one sample: depends on job seed, sample index, stream and attempt alone."""
    return np.random.SeedSequence(seed, spawn_key=(index, stream, attempt))


def draw_scene(job: Job, index: int) -> Scene:
    """Layout and scene of a sample: the same at every attempt.

    Raises:
        InfeasibleLayoutError: no layout was found; the message names index and seed.
    """
    try:
        layout = job.layout.sample(np.random.default_rng(seed_sequence(job.seed, index, LAYOUT_STREAM)), index)
    except InfeasibleLayoutError as error:
        raise InfeasibleLayoutError(f"sample {index}, seed {job.seed}: {error}") from None
    return job.scene.draw(layout, np.random.default_rng(seed_sequence(job.seed, index, SCENE_STREAM)))


class Worker:
    """Holds a loaded pipeline and makes shards with it.

    Args:
        job: the validated job.
        out: output folder.
        device: "cpu" or "cuda".
    """

    def __init__(self, job: Job, out: Path, device: str = "cpu") -> None:
        self.job, self.out = job, out
        self.numerics = Numerics(job.batch_size, job.chunk, job.threads, device, versions())
        limit_threads(job)
        self.painter = job.pipeline.load(job.scene, self.numerics)
        self.ids = job.ids()

    def make_shard(self, number: int) -> Iterator[Progress | StagedShard]:
        """Paint and stage one shard; yields progress after each batch, and the staged shard last.

        Where memory runs out the shard is begun again with half the chunk, which its marker then says; this worker stays at it.
        """
        while True:
            painted = 0
            try:
                for event in self._attempt(number):
                    painted += event.images if isinstance(event, Progress) else 0
                    yield event
                return
            except RuntimeError as error:
                if not out_of_memory(error) or self.numerics.chunk == 1:
                    raise
            log.warning("shard %06d: out of memory with chunk %d; again with half of it", number, self.numerics.chunk)
            yield Progress(number, -painted)
            self.numerics = replace(self.numerics, chunk=self.numerics.chunk // 2)
            self.painter = self.job.pipeline.load(self.job.scene, self.numerics)

    def _attempt(self, number: int) -> Iterator[Progress | StagedShard]:
        """Paint and stage one shard.

        Encoding runs in a thread beside the painting of the next batch.
        """
        began, first = time.perf_counter(), number * self.job.output.shard_size
        indices = range(first, first + self.job.shard_count(number))
        encoded: list[Future[list[Sample]]] = []
        painted = 0
        with ThreadPoolExecutor(max_workers=1) as pool:
            for start in range(0, len(indices), self.job.batch_size):
                batch = indices[start : start + self.job.batch_size]
                scenes, paintings, attempts = self.paint(batch)
                encoded.append(pool.submit(self.encode, batch, scenes, paintings, attempts))
                painted += sum(a + 1 for a in attempts)
                yield Progress(number, len(batch))
            samples = [sample for batch_samples in encoded for sample in batch_samples.result()]
        yield stage(self.out, number, samples, asdict(self.numerics), time.perf_counter() - began, painted)

    def paint(self, indices: Sequence[int]) -> tuple[list[Scene], list[Painting], list[int]]:
        """Scenes, paintings and attempt numbers of a batch; a failed image is painted again with new noise.

        Raises:
            RejectedImageError: an image failed at every attempt and the job says so.
        """
        scenes = [draw_scene(self.job, i) for i in indices]
        attempts = [0] * len(indices)
        paintings = self.painter(scenes, [self._noise(i, 0) for i in indices])
        for attempt in range(1, self.job.max_attempts):
            failed = [k for k, painting in enumerate(paintings) if not is_picture(painting)]
            if not failed:
                break
            seeds = [self._noise(indices[k], attempt) for k in failed]
            for k, painting in zip(failed, self.painter([scenes[k] for k in failed], seeds), strict=True):
                paintings[k], attempts[k] = painting, attempt
        bad = [indices[k] for k, painting in enumerate(paintings) if not is_picture(painting)]
        if bad and self.job.on_reject == "fail":
            raise RejectedImageError(f"samples {bad}: blank after {self.job.max_attempts} attempts")
        return scenes, paintings, attempts

    def encode(
        self, indices: Sequence[int], scenes: Sequence[Scene], paintings: Sequence[Painting], attempts: Sequence[int]
    ) -> list[Sample]:
        """Finished samples of a painted batch."""
        job, samples = self.job, []
        for index, scene, painting, attempt in zip(indices, scenes, paintings, attempts, strict=True):
            picture = encode_image(painting.image, job.output.image_format, job.output.quality)
            boxes = tuple(annotations(scene, painting, self.ids))
            size = (scene.layout.width, scene.layout.height)
            samples.append(Sample(index, *size, scene.prompt, job.seed, attempt, boxes, picture, job.output.image_format))
        return samples

    def _noise(self, index: int, attempt: int) -> np.random.SeedSequence:
        return seed_sequence(self.job.seed, index, NOISE_STREAM, attempt)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that a GPU's or this machine's memory does not suffice."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def limit_threads(job: Job) -> None:
    """Set torch's CPU threads, which its results depend on, if the pipeline uses torch."""
    if job.pipeline.uses_torch:
        import torch

        torch.set_num_threads(job.threads)


def is_picture(painting: Painting) -> bool:
    """Whether a painting shows anything: not black, not one colour."""
    return float(painting.image[::4, ::4].std()) > BLANK_DEVIATION


def encode_image(pixels: np.ndarray[Any, np.dtype[np.uint8]], image_format: str, quality: int) -> bytes:
    """(H, W, 3) uint8 as jpg, png or webp."""
    buffer = io.BytesIO()
    options = {} if image_format == "png" else {"quality": quality}
    Image.fromarray(pixels).save(buffer, PIL_FORMATS[image_format], **options)
    return buffer.getvalue()


def annotations(scene: Scene, painting: Painting, ids: dict[str, int]) -> Iterator[dict[str, Any]]:
    """COCO annotations of a painted scene; `area` is that of the mask where one is known."""
    layout = scene.layout
    for i, ((x0, y0, x1, y1), category) in enumerate(zip(layout.boxes.tolist(), layout.categories, strict=True)):
        if layout.labelled is not None and not layout.labelled[i]:
            continue
        box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": ids[category], "category": category, "phrase": scene.phrases[i]}
        if painting.masks is None:
            yield {**box, "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
        else:
            mask = painting.masks[i]
            yield {**box, "area": float(coco_mask.area(mask)), "iscrowd": 0, "segmentation": mask}
