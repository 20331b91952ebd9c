"""Training of a detector on crops of scenes: what the small one and those of transformers have in common."""

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
from synthgen.training.augmentation import Picture
from synthgen.training.detector import Spec
from synthgen.training.scenes import Pool, held_out_scenes, open_scenes
from synthgen.verification.detections import Detections

HELD_OUT_SCENES = 12
TILE = 400  # px, side of a picture on the sheet


class Example(NamedTuple):
    """One training crop.

    Attributes:
        picture: (H, W, 3) uint8.
        boxes: (N, 4) float32 xyxy in px; they may reach over the crop's edges, or lie outside.
        kinds: N indices of categories.
    """

    picture: Picture
    boxes: NDArray[np.float32]
    kinds: list[int]


class DetectorTrainee(nn.Module):
    """A detector in training; its forward is the loss of what `collate` makes."""

    def __init__(self, spec: Spec, crop: int | None) -> None:
        super().__init__()
        self.spec, self.crop = spec, crop
        self.scenes = open_scenes(spec.data, spec.seed)
        held_out = islice(held_out_scenes(spec.data, spec.seed).from_number(0), HELD_OUT_SCENES)
        self.held_out = [(self.known(scene), picture) for scene, picture in held_out]
        self.threshold = 0.3

    @abstractmethod
    def collate(self, examples: Sequence[Example], rng: np.random.Generator) -> Any:
        """One batch."""

    @abstractmethod
    def detect(self, picture: Picture) -> Detections:
        """What the detector finds in a picture (H, W, 3), as the detector says it."""

    def found(self, picture: Picture) -> Detections:
        """What is in a picture (H, W, 3), clipped to it, best first."""
        height, width = picture.shape[:2]
        return self.detect(picture).inside(width, height)

    def batches(self, start: int, rank: int) -> Iterator[Any]:
        pool: Pool[tuple[Scene, Picture]] = Pool(
            self.scenes, self.spec.data, lambda scene, picture: (self.known(scene), picture)
        )
        for step, scenes in enumerate(pool.steps(start), start):
            rng = np.random.default_rng(
                seed_sequence(self.spec.seed, step, Stream.TRAINING_STEP, rank)
            )
            picks = [scenes[int(i)] for i in rng.integers(len(scenes), size=self.spec.batch_size)]
            yield self.collate([self.example(*pick, rng) for pick in picks], rng)

    def known(self, scene: Scene) -> Scene:
        """A scene's objects of the categories that it learns."""
        names = scene.layout.categories
        return Scene(
            scene.layout.select(
                [i for i, name in enumerate(names) if name in self.spec.categories]
            ),
            scene.background,
        )

    def example(self, scene: Scene, picture: Picture, rng: np.random.Generator) -> Example:
        """A crop, or the whole of a smaller picture, mirrored half of the time, sometimes soft or noisy."""
        side = self.crop or max(picture.shape)
        y, x = (int(rng.integers(max(0, n - side) + 1)) for n in picture.shape[:2])
        boxes = scene.layout.boxes - np.array([x, y, x, y], np.float32)
        crop = picture[y : y + side, x : x + side]
        if rng.random() < 0.5:
            width = crop.shape[1]
            crop, boxes = (
                crop[:, ::-1],
                np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1),
            )
        kinds = [self.spec.categories.index(name) for name in scene.layout.categories]
        return Example(soften(crop, rng), boxes, kinds)

    def measure(self) -> dict[str, float]:
        """On held-out scenes, at the threshold that counts best: count error, precision and recall (IoU >= 0.5)."""
        found = [self.found(picture) for _, picture in self.held_out]
        errors = {
            t: count_error(self.held_out, found, t)
            for t in np.arange(0.15, 0.61, 0.05).round(2).tolist()
        }
        best = self.threshold = min(errors, key=lambda t: (errors[t], abs(t - 0.35)))
        right = sum(
            matches(scene, d.at_least(best))
            for (scene, _), d in zip(self.held_out, found, strict=True)
        )
        named, real = (
            sum(len(d.at_least(best).scores) for d in found),
            sum(len(s.layout) for s, _ in self.held_out),
        )
        figures = {
            "count_error": errors[best],
            "precision": right / max(1, named),
            "recall": right / max(1, real),
        }
        return {
            **{name: round(float(value), 4) for name, value in figures.items()},
            "threshold": best,
        }

    def sheet(self) -> Image.Image:
        """Held-out scenes with what was found in them."""
        sheet = Image.new("RGB", (3 * TILE, 2 * TILE))
        for k, (_, picture) in enumerate(self.held_out[:6]):
            image = Image.fromarray(picture)
            draw = ImageDraw.Draw(image)
            for box in self.found(picture).at_least(self.threshold).boxes.tolist():
                draw.rectangle(box, outline=(255, 0, 0), width=2)
            sheet.paste(ImageOps.pad(image, (TILE, TILE)), (k % 3 * TILE, k // 3 * TILE))
        return sheet


def soften(crop: Picture, rng: np.random.Generator) -> Picture:
    """Sometimes blurred, sometimes noisy: generated pictures are softer than pasted ones."""
    image = Image.fromarray(np.ascontiguousarray(crop))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.6))))
    noise = rng.normal(0, rng.uniform(0, 8), crop.shape) if rng.random() < 0.3 else 0
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


def count_error(
    held_out: list[tuple[Scene, Picture]], found: list[Detections], threshold: float
) -> float:
    """Sum over the pictures of |found - real|, over the sum of real."""
    wrong = sum(
        abs(len(d.at_least(threshold).scores) - len(s.layout))
        for (s, _), d in zip(held_out, found, strict=True)
    )
    return wrong / max(1, sum(len(scene.layout) for scene, _ in held_out))


def matches(scene: Scene, found: Detections) -> int:
    """How many real boxes a detection of the same category covers with IoU >= 0.5."""
    if not len(found.scores) or not len(scene.layout):
        return 0
    same = np.array(scene.layout.categories)[:, None] == np.array(found.categories)[None]
    return int(((box_iou(scene.layout.boxes, found.boxes) >= 0.5) & same).any(1).sum())
