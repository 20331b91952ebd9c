"""Makes one shard at a time: layouts, scenes, pictures, files. Knows nothing of Ray."""

import errno
import gc
import io
import logging
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from synthgen.annotations import Annotation
from synthgen.config.job import Job, OutputSpec
from synthgen.dataset.sample import Sample
from synthgen.dataset.shard import StagedShard, stage
from synthgen.dataset.versions import versions
from synthgen.errors import InputError, StoreFailedError, StoreRefusedError
from synthgen.geometry import xyxy_to_xywh
from synthgen.layouts.base import InfeasibleLayoutError
from synthgen.pipelines.base import Numerics, Painting
from synthgen.randomness import Stream, child_sequence, seed_sequence
from synthgen.scenes.scene import Scene
from synthgen.storage.base import Store
from synthgen.verification.repair import Checked, Inspection

log = logging.getLogger(__name__)

BLANK_DEVIATION = 1.0  # grey levels; a picture with less is not a picture
ENCODE_BATCHES = 2  # that may wait to be encoded, or be, while the next one is generated
PIL_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


class RejectedImageError(Exception):
    """An image failed `max_attempts` times and the job says `on_reject: fail`."""


@dataclass(frozen=True)
class Painted:
    """A painted scene.

    Attributes:
        attempt: number of the attempt that it came from.
        checked: what was seen in it, if the job looks.
        tries: attempts that were made.
    """

    scene: Scene
    painting: Painting
    attempt: int
    checked: Checked | None = None
    tries: int = 1

    @property
    def faults(self) -> float:
        """How many boxes do not hold; a picture that shows nothing is worse than any other."""
        if not is_picture(self.painting):
            return float("inf")
        return 0 if self.checked is None else self.checked.faults


@dataclass(frozen=True)
class Progress:
    """So many images of a shard were painted since the last report."""

    shard: int
    images: int


def draw_scene(job: Job, index: int) -> Scene:
    """Layout and scene of a sample: the same at every attempt.

    Raises:
        InfeasibleLayoutError: no layout was found; the message names index and seed.
    """
    try:
        layout = job.layout.sample(
            np.random.default_rng(seed_sequence(job.seed, index, Stream.LAYOUT)), index
        )
    except InfeasibleLayoutError as error:
        raise InfeasibleLayoutError(f"sample {index}, seed {job.seed}: {error}") from None
    words, atmosphere = (
        np.random.default_rng(seed_sequence(job.seed, index, s))
        for s in (Stream.SCENE, Stream.ATMOSPHERE)
    )
    return job.scene.draw(layout, words, atmosphere)


class Worker:
    """Holds a loaded pipeline and makes shards with it.

    Args:
        job: the validated job.
        store: where shards are staged to.
        device: "cpu" or "cuda".
    """

    def __init__(self, job: Job, store: Store, device: str = "cpu") -> None:
        self.job, self.store = job, store
        self.numerics = Numerics(
            job.batch_size, job.chunk, job.threads, device, versions(), job.files()
        )
        self.ids = job.ids()
        limit_threads(job)
        self.load()

    def load(self) -> None:
        """Load the pipeline, and what looks at its pictures."""
        job, self.inspection = self.job, None
        self.painter = job.pipeline.load(job.scene, self.numerics)
        if job.verify is not None:
            self.inspection = Inspection(
                job.verify, job.verify.load(self.numerics.device), self.painter
            )

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
            log.warning(
                "shard %06d: out of memory with chunk %d; again with half of it",
                number,
                self.numerics.chunk,
            )
            yield Progress(number, -painted)
            self.halve_chunk()

    def halve_chunk(self) -> None:
        """Go on with half the chunk; where the pipeline has to be loaded anew for it, the old one is freed before."""
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

    def _attempt(self, number: int) -> Iterator[Progress | StagedShard]:
        """Paint and stage one shard.

        Encoding runs in a thread beside the painting of the next batches, which wait for it: no more than `ENCODE_BATCHES`
        are in memory as pixels, however many images the shard has.
        """
        began, first = time.perf_counter(), number * self.job.output.shard_size
        indices = range(first, first + self.job.shard_count(number))
        samples: list[Sample] = []
        waiting: deque[Future[list[Sample]]] = deque()
        painted = 0
        with ThreadPoolExecutor(max_workers=1) as pool:
            for start in range(0, len(indices), self.job.batch_size):
                batch = indices[start : start + self.job.batch_size]
                images = self.paint(batch)
                waiting.append(pool.submit(self.encode, batch, images))
                painted += sum(image.tries for image in images)
                del images
                yield Progress(number, len(batch))
                if len(waiting) == ENCODE_BATCHES:
                    samples += waiting.popleft().result()
            for future in waiting:
                samples += future.result()
        yield stage(
            self.store, number, samples, asdict(self.numerics), time.perf_counter() - began, painted
        )

    def paint(self, indices: Sequence[int]) -> list[Painted]:
        """A batch, painted and looked at; an image that fails is painted again with new noise.

        Raises:
            RejectedImageError: an image failed at every attempt and the job says so.
        """
        scenes = [draw_scene(self.job, i) for i in indices]
        batch = self.once(indices, scenes, 0)
        for attempt in range(1, self.job.max_attempts):
            failed = [k for k, painted in enumerate(batch) if self.wants_another(painted)]
            if not failed:
                break
            again = self.once([indices[k] for k in failed], [scenes[k] for k in failed], attempt)
            for k, new in zip(failed, again, strict=True):
                batch[k] = replace(
                    batch[k] if batch[k].faults <= new.faults else new, tries=attempt + 1
                )
        batch = [self.finished(painted) for painted in batch]
        if self.job.on_reject == "fail":
            self.refuse(indices, batch)
        return batch

    def once(self, indices: Sequence[int], scenes: Sequence[Scene], attempt: int) -> list[Painted]:
        """One attempt at a batch, repairs included."""
        paintings = self.painter(scenes, [self._noise(i, attempt) for i in indices])
        if self.inspection is None:
            return [
                Painted(scene, painting, attempt)
                for scene, painting in zip(scenes, paintings, strict=True)
            ]

        def seeds(k: int, number: int) -> np.random.SeedSequence:
            return child_sequence(
                seed_sequence(self.job.seed, indices[k], Stream.REPAIR, attempt), number
            )

        checked = self.inspection(scenes, paintings, seeds)
        return [
            Painted(scene, c.painting, attempt, c) for scene, c in zip(scenes, checked, strict=True)
        ]

    def wants_another(self, painted: Painted) -> bool:
        """Whether an image is to be painted again as a whole."""
        redo = self.inspection is not None and "redo" in self.inspection.kinds
        return not is_picture(painted.painting) or (redo and painted.faults > 0)

    def finished(self, painted: Painted) -> Painted:
        """An image with its last labels."""
        if self.inspection is None or painted.checked is None:
            return painted
        checked = self.inspection.finish(painted.checked)
        return replace(
            painted,
            scene=replace(painted.scene, layout=checked.layout.with_phrases(painted.scene.phrases)),
            checked=checked,
        )

    def refuse(self, indices: Sequence[int], batch: Sequence[Painted]) -> None:
        """Raise RejectedImageError for images that are blank, or whose boxes do not hold if that is not to be flagged."""
        pairs = list(zip(indices, batch, strict=True))
        blank = [i for i, painted in pairs if not is_picture(painted.painting)]
        flag = self.inspection is not None and "flag" in self.inspection.kinds
        wrong = (
            []
            if flag
            else [
                i for i, painted in pairs if painted.checked is not None and painted.checked.faults
            ]
        )
        for samples, what in (
            (blank, "blank"),
            (wrong, "boxes that do not hold, or objects that nobody asked for,"),
        ):
            if samples:
                raise RejectedImageError(
                    f"samples {samples}: {what} after {self.job.max_attempts} attempts"
                )

    def encode(self, indices: Sequence[int], batch: Sequence[Painted]) -> list[Sample]:
        """Finished samples of a painted batch: taken by the camera, now that all has been looked at, and encoded."""
        job, samples = self.job, []
        for index, painted in zip(indices, batch, strict=True):
            scene, checked = painted.scene, painted.checked
            pixels, conditions = self.take(index, painted)
            picture = encode_image(pixels, job.output)
            boxes = tuple(annotations(scene, painted.painting, self.ids, checked))
            width, height, kind = scene.layout.width, scene.layout.height, job.output.image_format
            verified = None if checked is None else checked.record()
            sample = Sample(
                index,
                width,
                height,
                scene.prompt,
                job.seed,
                painted.attempt,
                boxes,
                picture,
                kind,
                verified,
                conditions,
            )
            samples.append(sample)
        return samples

    def take(self, index: int, painted: Painted) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """A painted picture as the scene's camera takes it, and what was drawn for it: the same at every attempt."""
        image, conditions = painted.painting.image, dict[str, Any](painted.scene.atmosphere)
        if self.job.scene.camera is None:
            return image, conditions
        image, effects = self.job.scene.camera(
            image, seed_sequence(self.job.seed, index, Stream.CAMERA)
        )
        return image, conditions | effects

    def _noise(self, index: int, attempt: int) -> np.random.SeedSequence:
        return seed_sequence(self.job.seed, index, Stream.NOISE, attempt)


def free_memory() -> None:
    """Return what nothing holds any more to the operating system, or to the GPU where torch keeps it for itself."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that a GPU's or this machine's memory does not suffice."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def is_final(error: BaseException | None) -> bool:
    """Whether a shard that failed like this fails like this every time."""
    return isinstance(error, RejectedImageError | InputError)


def is_full(error: BaseException | None) -> bool:
    """Whether there is no room for files."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def ends_all(error: BaseException) -> bool:
    """Whether no other shard could be written either: there is no room, or no store."""
    return is_full(error) or isinstance(error, StoreFailedError | StoreRefusedError)


def limit_threads(job: Job) -> None:
    """Set torch's CPU threads, which its results depend on, if the pipeline uses torch."""
    if job.pipeline.uses_torch or job.verify is not None:
        import torch

        torch.set_num_threads(job.threads)


def is_picture(painting: Painting) -> bool:
    """Whether a painting shows anything: not black, not one colour."""
    return float(painting.image[::4, ::4].std()) > BLANK_DEVIATION


def encode_image(pixels: NDArray[np.uint8], output: OutputSpec) -> bytes:
    """Encode an image (H, W, 3) as the job's output says."""
    options: dict[str, Any] = {}
    if output.image_format != "png":
        options["quality"] = output.quality
    if output.image_format == "jpg":
        options["subsampling"] = output.subsampling
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, PIL_FORMATS[output.image_format], **options)
    return buffer.getvalue()


def annotations(
    scene: Scene, painting: Painting, ids: dict[str, int], checked: Checked | None = None
) -> Iterator[Annotation]:
    """Yield the annotations of a painted scene; `area` is that of the mask where one is known.

    An object of which no pixel is to be seen has no annotation.
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
        yield Annotation(
            bbox=tuple(box),
            category_id=ids[category],
            category=category,
            phrase=scene.phrases[i],
            area=area,
            segmentation=mask,
            **({} if checked is None else checked.annotation(i)),
        )
