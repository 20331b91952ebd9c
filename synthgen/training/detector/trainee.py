"""Training of detectors on crops of scenes: what all detectors have in common."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torch import nn

from synthgen.geometry import box_iou
from synthgen.randomness import Stream, seed_sequence
from synthgen.scenes.scene import Scene
from synthgen.training.augmentation import ImageArray
from synthgen.training.detector import Spec
from synthgen.training.scenes import Pool, open_held_out_scenes, open_scenes
from synthgen.verification.detections import Detections

HELD_OUT_SCENES = 12
SHEET_CELL = 400  # px, side of an image on the sheet
THRESHOLDS = tuple(np.arange(0.15, 0.61, 0.05).round(2).tolist())
USUAL_THRESHOLD = 0.35  # the nearest of equally good thresholds is chosen
MIN_IOU = 0.5


class Example(NamedTuple):
    """A training crop.

    Attributes:
        image: (H, W, 3) uint8.
        boxes: (N, 4) float32 xyxy in px; they may reach over the crop's edges, or lie outside.
        category_indices: N indices of categories.
    """

    image: ImageArray
    boxes: NDArray[np.float32]
    category_indices: list[int]


class DetectorTrainee(nn.Module):
    """A detector in training; forward returns the loss of what `collate` returns."""

    def __init__(self, spec: Spec, crop: int | None) -> None:
        super().__init__()
        self.spec = spec
        self.crop = crop
        self.scenes = open_scenes(spec.data, spec.seed)
        self.held_out: list[tuple[Scene, ImageArray]] = []
        scenes = open_held_out_scenes(spec.data, spec.seed).iterate_from(0)
        for scene, image in islice(scenes, HELD_OUT_SCENES):
            self.held_out.append((self.select_categories(scene), image))
        self.threshold = 0.3

    @abstractmethod
    def collate(self, examples: Sequence[Example], rng: np.random.Generator) -> Any:
        """Return one batch."""

    @abstractmethod
    def detect(self, image: ImageArray) -> Detections:
        """Return the raw detections of an image (H, W, 3)."""

    def find_objects(self, image: ImageArray) -> Detections:
        """Return the detections in an image (H, W, 3), clipped to it, best first."""
        height, width = image.shape[:2]
        return self.detect(image).clip_to_image(width, height)

    def batches(self, start: int, rank: int) -> Iterator[Any]:
        pool: Pool[tuple[Scene, ImageArray]] = Pool(
            self.scenes,
            self.spec.data,
            lambda scene, image: (self.select_categories(scene), image),
        )
        for step, scenes in enumerate(pool.steps(start), start):
            sequence = seed_sequence(self.spec.seed, step, Stream.TRAINING_STEP, rank)
            rng = np.random.default_rng(sequence)
            chosen = rng.integers(len(scenes), size=self.spec.batch_size)
            examples = [self.make_example(*scenes[i], rng) for i in chosen.tolist()]
            yield self.collate(examples, rng)

    def select_categories(self, scene: Scene) -> Scene:
        """Return a scene with its objects of the job's categories."""
        kept = []
        for i, name in enumerate(scene.layout.categories):
            if name in self.spec.categories:
                kept.append(i)
        return Scene(scene.layout.select(kept), scene.background)

    def make_example(self, scene: Scene, image: ImageArray, rng: np.random.Generator) -> Example:
        """Return a random crop, or the whole of a smaller image, augmented.

        Half of the crops are mirrored; some are blurred or noisy.
        """
        side = self.crop or max(image.shape)
        y = int(rng.integers(max(0, image.shape[0] - side) + 1))
        x = int(rng.integers(max(0, image.shape[1] - side) + 1))
        boxes = scene.layout.boxes - np.array([x, y, x, y], np.float32)
        crop = image[y : y + side, x : x + side]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
            x0, y0, x1, y1 = boxes.T
            boxes = np.stack([crop.shape[1] - x1, y0, crop.shape[1] - x0, y1], 1)
        indices = [self.spec.categories.index(name) for name in scene.layout.categories]
        return Example(blur_or_add_noise(crop, rng), boxes, indices)

    def measure(self) -> dict[str, float]:
        """Return count error, precision and recall (IoU >= MIN_IOU) on held-out scenes.

        They are measured at the score threshold with the smallest count error.
        """
        detections = [self.find_objects(image) for _, image in self.held_out]
        errors = {}
        for threshold in THRESHOLDS:
            errors[threshold] = count_error(self.held_out, detections, threshold)
        self.threshold = min(errors, key=lambda t: (errors[t], abs(t - USUAL_THRESHOLD)))
        correct = 0
        detected = 0
        labelled = 0
        for (scene, _), found in zip(self.held_out, detections, strict=True):
            kept = found.at_least(self.threshold)
            correct += count_matches(scene, kept)
            detected += len(kept.scores)
            labelled += len(scene.layout)
        return {
            "count_error": round(float(errors[self.threshold]), 4),
            "precision": round(correct / max(1, detected), 4),
            "recall": round(correct / max(1, labelled), 4),
            "threshold": self.threshold,
        }

    def render_sheet(self) -> Image.Image:
        """Return held-out images with the detections in them."""
        sheet = Image.new("RGB", (3 * SHEET_CELL, 2 * SHEET_CELL))
        for k, (_, pixels) in enumerate(self.held_out[:6]):
            image = Image.fromarray(pixels)
            draw = ImageDraw.Draw(image)
            for box in self.find_objects(pixels).at_least(self.threshold).boxes.tolist():
                draw.rectangle(box, outline=(255, 0, 0), width=2)
            place = (k % 3 * SHEET_CELL, k // 3 * SHEET_CELL)
            sheet.paste(ImageOps.pad(image, (SHEET_CELL, SHEET_CELL)), place)
        return sheet


def blur_or_add_noise(crop: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Return a crop that is sometimes blurred and sometimes noisy.

    Generated images are softer than pasted ones.
    """
    image = Image.fromarray(np.ascontiguousarray(crop))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.6))))
    pixels = np.array(image)
    if rng.random() < 0.3:
        noisy = pixels + rng.normal(0, rng.uniform(0, 8), crop.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8)
    return pixels


def count_error(
    held_out: list[tuple[Scene, ImageArray]], detections: list[Detections], threshold: float
) -> float:
    """Return the sum over images of |detected - labelled| objects, over the labelled objects."""
    wrong = 0
    labelled = 0
    for (scene, _), found in zip(held_out, detections, strict=True):
        wrong += abs(len(found.at_least(threshold).scores) - len(scene.layout))
        labelled += len(scene.layout)
    return wrong / max(1, labelled)


def count_matches(scene: Scene, found: Detections) -> int:
    """Return how many boxes have a detection of the same category with IoU >= MIN_IOU."""
    if not len(found.scores) or not len(scene.layout):
        return 0
    same = np.array(scene.layout.categories)[:, None] == np.array(found.categories)[None]
    overlapping = box_iou(scene.layout.boxes, found.boxes) >= MIN_IOU
    return int((overlapping & same).any(1).sum())
