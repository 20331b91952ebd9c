"""Training of the small detector on crops of scenes."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor, nn
from torch.nn import functional as F

from synthgen.scene import Scene
from synthgen.train.scenes import PastedScenes, Picture, Pool, open_scenes
from synthgen.train.tasks.detector import Spec
from synthgen.train.vae import to_tensor
from synthgen.verify.centernet import STRIDE, CenterNet, Detections, iou

SPREAD = 12  # the heat of an object falls off with its side / SPREAD
HELD_OUT_SCENES = 12
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


class DetectorTrainee(nn.Module):
    """The detector; forward is the loss of one batch: pictures, heat maps, distances, weights of the distances."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.net = CenterNet(spec.categories, spec.channels).to(memory_format=torch.channels_last)
        self.scenes = open_scenes(spec.data, spec.seed)
        self.held_out = list(islice(PastedScenes(512, 2, "heldout").from_number(0), HELD_OUT_SCENES))

    def batches(self, start: int, rank: int) -> Iterator[Batch]:
        pool: Pool[tuple[Scene, Picture]] = Pool(self.scenes, self.spec.data, lambda scene, picture: (scene, picture))
        for step, scenes in enumerate(pool.steps(start), start):
            rng = np.random.default_rng((self.spec.seed, step, rank))
            picks = [scenes[int(i)] for i in rng.integers(len(scenes), size=self.spec.batch_size)]
            pictures, *targets = zip(*(self.example(*pick, rng) for pick in picks), strict=True)
            yield to_tensor(np.stack(pictures)), *(torch.from_numpy(np.stack(t)) for t in targets)  # type: ignore[misc]

    def example(self, scene: Scene, picture: Picture, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
        """A crop, mirrored half of the time, sometimes soft or noisy, and what is to be found in it."""
        side = self.spec.crop
        y, x = (int(rng.integers(n - side + 1)) for n in picture.shape[:2])
        boxes = scene.layout.boxes - np.array([x, y, x, y], np.float32)
        crop = picture[y : y + side, x : x + side]
        if rng.random() < 0.5:
            crop, boxes = crop[:, ::-1], np.stack([side - boxes[:, 2], boxes[:, 1], side - boxes[:, 0], boxes[:, 3]], 1)
        known = [i for i, name in enumerate(scene.layout.categories) if name in self.spec.categories]
        kinds = [self.spec.categories.index(scene.layout.categories[i]) for i in known]
        return soften(crop, rng), *targets(boxes[known], kinds, len(self.spec.categories), side // STRIDE)

    def forward(self, batch: Batch) -> Tensor:
        """Focal loss of the heat (arXiv 1904.07850, equation 1) and smooth L1 of the log distances."""
        x, heat, distances, weight = (part.to(self.net.device) for part in batch)
        logits, predicted = self.net(x.contiguous(memory_format=torch.channels_last))
        p = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
        peak = heat == 1
        focal = torch.where(peak, (1 - p) ** 2 * p.log(), (1 - heat) ** 4 * p**2 * (1 - p).log())
        apart = F.smooth_l1_loss(predicted, distances, beta=0.1, reduction="none").sum(1) * weight
        return -focal.sum() / peak.sum().clamp(min=1) + apart.sum() / weight.sum().clamp(min=1)

    def measure(self) -> dict[str, float]:
        """On held-out scenes, at the threshold that counts best: count error, precision and recall (IoU >= 0.5)."""
        found = [self.net.detect(picture) for _, picture in self.held_out]
        errors = {t: count_error(self.held_out, found, t) for t in np.arange(0.15, 0.61, 0.05).round(2).tolist()}
        best = min(errors, key=lambda t: (errors[t], abs(t - 0.35)))
        self.net.register_to_config(threshold=best)
        right = sum(matches(scene, d.at_least(best)) for (scene, _), d in zip(self.held_out, found, strict=True))
        named, real = sum(len(d.at_least(best).scores) for d in found), sum(len(s.layout) for s, _ in self.held_out)
        figures = {"count_error": errors[best], "precision": right / max(1, named), "recall": right / max(1, real)}
        return {**{name: round(float(value), 4) for name, value in figures.items()}, "threshold": best}

    def sheet(self) -> Image.Image:
        """Held-out scenes with what was found in them."""
        tiles = []
        for _, picture in self.held_out[:6]:
            image = Image.fromarray(picture)
            draw = ImageDraw.Draw(image)
            for box in self.net.detect(picture).at_least(self.net.config["threshold"]).boxes.tolist():
                draw.rectangle(box, outline=(255, 0, 0), width=2)
            tiles.append(np.asarray(image))
        return Image.fromarray(np.concatenate([np.concatenate(tiles[:3], 1), np.concatenate(tiles[3:], 1)]))

    def export(self, folder: Path) -> None:
        """Write the detector in fp16."""
        self.net.register_to_config(_name_or_path=self.spec.name)
        self.net.half().save_pretrained(folder)
        self.net.float()


def soften(crop: Picture, rng: np.random.Generator) -> Picture:
    """Sometimes blurred, sometimes noisy: generated pictures are softer than pasted ones."""
    image = Image.fromarray(np.ascontiguousarray(crop))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.6))))
    noise = rng.normal(0, rng.uniform(0, 8), crop.shape) if rng.random() < 0.3 else 0
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


def targets(boxes: NDArray[np.float32], kinds: list[int], categories: int, cells: int) -> tuple[NDArray[np.float32], ...]:
    """What the detector should say of a crop of `cells` x `cells`.

    Returns:
        heat (categories, cells, cells), 1 where an object's centre is; log distances (4, cells, cells) in cells; and
        their weight (cells, cells), which is 0 where there is no object.
    """
    heat = np.zeros((categories, cells, cells), np.float32)
    distances, weight = np.zeros((4, cells, cells), np.float32), np.zeros((cells, cells), np.float32)
    at = np.arange(cells) + 0.5
    for (x0, y0, x1, y1), kind in zip((boxes / STRIDE).tolist(), kinds, strict=True):
        cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
        if not (0 <= cx < cells and 0 <= cy < cells):
            continue
        sx, sy = max(0.7, (x1 - x0) / SPREAD), max(0.7, (y1 - y0) / SPREAD)
        bump = np.outer(np.exp(-0.5 * ((at - cy) / sy) ** 2), np.exp(-0.5 * ((at - cx) / sx) ** 2))
        bump[int(cy), int(cx)] = 1
        heat[kind] = np.maximum(heat[kind], bump)
        rows, columns = np.nonzero((bump > 0.5) & (bump > weight))
        weight[rows, columns] = bump[rows, columns]
        sides = (at[columns] - x0, at[rows] - y0, x1 - at[columns], y1 - at[rows])
        distances[:, rows, columns] = np.log(np.maximum(sides, 0.25))
    return heat, distances, weight


def count_error(held_out: list[tuple[Scene, Picture]], found: list[Detections], threshold: float) -> float:
    """Sum over the pictures of |found - real|, over the sum of real."""
    wrong = sum(abs(len(d.at_least(threshold).scores) - len(s.layout)) for (s, _), d in zip(held_out, found, strict=True))
    return wrong / max(1, sum(len(scene.layout) for scene, _ in held_out))


def matches(scene: Scene, found: Detections) -> int:
    """How many real boxes a detection of the same category covers with IoU >= 0.5."""
    if not len(found.scores) or not len(scene.layout):
        return 0
    same = np.array(scene.layout.categories)[:, None] == np.array(found.categories)[None]
    return int(((iou(scene.layout.boxes, found.boxes) >= 0.5) & same).any(1).sum())
