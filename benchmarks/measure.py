"""The measurements of the benchmarks, and the scenes that they generate."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from synthgen.config import load_job
from synthgen.geometry import box_iou
from synthgen.pipelines.base import Numerics, Painter
from synthgen.pipelines.paste import Spec as PasteSpec
from synthgen.scenes.scene import Scene, SceneSpec
from synthgen.training.vae.trainee import to_tensor
from synthgen.verification.centernet import CenterNet

COLOURS = ("brown", "white", "black")
SCENES = SceneSpec(
    object=tuple(f"a {colour} {{category}}" for colour in COLOURS), background="a field of grass"
)
Images = list[NDArray[np.uint8]]
JUDGE_CONTEXT = 0.35  # the margin of a crop, as a share of the longer side of its box
JUDGE_THRESHOLD = 0.25
DIRECTIONS = 64


@dataclass
class Meters:
    """The models that measure images, and the features that images are compared with."""

    judge: Any
    detector: CenterNet
    features: Any
    layout: Sequence[str] = ()  # overrides of the layout of the reference scenes
    reference: NDArray[np.float64] = field(init=False)  # features of pasted crops
    training: NDArray[np.float64] = field(init=False)  # features of training crops
    colours: torch.nn.Linear = field(init=False)

    def __post_init__(self) -> None:
        scenes = sample_scenes(100, 8, 10**6, self.layout)
        images = load_paste("train")(scenes, make_seeds(scenes, 10**6))
        self.training = self.describe(images, scenes)
        self.colours = train_colour_classifier(images, scenes)
        scenes = sample_scenes(100, 4, 2 * 10**6, self.layout)
        images = load_paste("heldout")(scenes, make_seeds(scenes, 2 * 10**6))
        self.reference = self.describe(images, scenes)

    @torch.no_grad()
    def describe(self, images: Images, scenes: list[Scene]) -> NDArray[np.float64]:
        """Return EfficientNet features (boxes, 1280), normalised, of a square crop of each box."""
        crops = crop_all_boxes(images, scenes)
        batches = []
        for start in range(0, len(crops), 32):
            pixels = to_tensor(np.stack(crops[start : start + 32]))
            features = self.features.extract_features(pixels).mean((2, 3))
            batches.append(torch.nn.functional.normalize(features, dim=1).double().numpy())
        return np.concatenate(batches)

    def measure(
        self, images: Images, scenes: list[Scene], seconds: float
    ) -> dict[str, float | None]:
        """Return the figures of images; benchmarks/checkpoint.py explains them."""
        features = self.describe(images, scenes)
        nearest = (features @ self.training.T).max(1)
        return {
            "hit rate": measure_hit_rate(self.judge, images, scenes) if self.judge else None,
            "variety": measure_spread(features) / measure_spread(self.reference),
            "count error": measure_count_error(self.detector, images, scenes),
            "colour": measure_colour_rate(self.colours, images, scenes),
            "Fréchet": measure_frechet_distance(features, self.reference),
            "nearest": float((2 - 2 * nearest).mean()),
            "seconds": seconds,
        }


def sample_scenes(count: int, images: int, seed: int, overrides: Sequence[str] = ()) -> list[Scene]:
    """Return scenes of `count` dogs on grass, with the layout of layouts/100dogs.yaml.

    Args:
        overrides: `key=value` of the job.
    """
    dogs = f"layout.objects={{dog: {count}}}"
    spec = load_job("100dogs", [dogs, "pipeline=paste", *overrides]).layout
    scenes = []
    for number in range(images):
        rng = np.random.default_rng((seed, count, number))
        layout = spec.sample(rng)
        scenes.append(SCENES.draw(layout, rng))
    return scenes


def make_seeds(scenes: list[Scene], seed: int) -> list[np.random.SeedSequence]:
    """Return a seed for each scene, which depends on its number of boxes and its position."""
    seeds = []
    for number, scene in enumerate(scenes):
        seeds.append(np.random.SeedSequence((seed, len(scene.layout), number)))
    return seeds


def load_paste(split: str) -> Callable[[list[Scene], list[np.random.SeedSequence]], Images]:
    """Return a function that pastes scenes from the cut-outs and backgrounds of a split."""
    painter = PasteSpec(cutouts=split, grounds=split).load(SCENES, Numerics())
    return partial(generate_images, painter)


def crop_all_boxes(images: Images, scenes: list[Scene]) -> Images:
    """Return a square crop of 160 px of each box of all images, without a margin."""
    crops = []
    for image, scene in zip(images, scenes, strict=True):
        crops += crop_boxes(image, scene, 0, 160)
    return crops


def crop_boxes(pixels: NDArray[np.uint8], scene: Scene, context: float, side: int) -> Images:
    """Return the square around each box, resized to `side` px.

    Args:
        context: the margin on each side of the box, as a share of its longer side.
    """
    image = Image.fromarray(pixels)
    crops = []
    for box in scene.layout.boxes.tolist():
        crop = image.transform(
            (side, side),
            Image.Transform.EXTENT,
            find_square(box, context),
            Image.Resampling.BICUBIC,
        )
        crops.append(np.asarray(crop))
    return crops


def find_square(box: list[float], context: float) -> tuple[float, float, float, float]:
    """Return the square (xyxy, px) around a box; see `crop_boxes` for `context`."""
    x = (box[0] + box[2]) / 2
    y = (box[1] + box[3]) / 2
    half = max(box[2] - box[0], box[3] - box[1]) * (0.5 + context)
    return x - half, y - half, x + half, y + half


def measure_hit_rate(judge: Any, images: Images, scenes: list[Scene]) -> float:
    """Return the share of boxes in which the judge finds a dog with IoU >= 0.5."""
    hits = []
    for image, scene in zip(images, scenes, strict=True):
        crops = crop_boxes(image, scene, JUDGE_CONTEXT, 300)
        for crop, box in zip(crops, scene.layout.boxes, strict=True):
            x0, y0, x1, _ = find_square(box.tolist(), JUDGE_CONTEXT)
            target = (box - np.array([x0, y0, x0, y0])) / (x1 - x0)
            boxes, scores = judge(Image.fromarray(crop))
            overlaps = box_iou(boxes, target[None])[:, 0] >= 0.5
            hits.append(bool((overlaps & (scores >= JUDGE_THRESHOLD)).any()))
    return float(np.mean(hits))


def measure_spread(features: NDArray[np.float64]) -> float:
    """Return the mean squared distance between all pairs of normalised features (N, D)."""
    n = len(features)
    return float((2 - 2 * features @ features.T).sum() / (n * (n - 1)))


def measure_count_error(detector: CenterNet, images: Images, scenes: list[Scene]) -> float:
    """Return the sum of |found dogs - boxes| of the images, divided by the number of boxes."""
    wrong = 0
    boxes = 0
    for image, scene in zip(images, scenes, strict=True):
        detections = detector.detect(image).at_least(detector.config["threshold"])
        wrong += abs(detections.categories.count("dog") - len(scene.layout))
        boxes += len(scene.layout)
    return wrong / boxes


def compute_histograms(images: Images, scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the joint colour histogram (boxes, 216) of the middle of each box, and its colour.

    The colours (boxes,) are those of the phrases, as indices of `COLOURS`.
    """
    rows = []
    colours = []
    for image, scene in zip(images, scenes, strict=True):
        boxes = scene.layout.boxes.astype(int).tolist()
        for (x0, y0, x1, y1), phrase in zip(boxes, scene.phrases, strict=True):
            dx = (x1 - x0) // 6
            dy = (y1 - y0) // 6
            middle = image[y0 + dy : y1 - dy, x0 + dx : x1 - dx].reshape(-1, 3)
            bins = (middle.astype(int) * 6 // 256) @ [36, 6, 1]
            rows.append(np.sqrt(np.bincount(bins, minlength=216) / len(bins)))
            colours.append([colour in phrase for colour in COLOURS].index(True))
    return torch.tensor(np.array(rows), dtype=torch.float32), torch.tensor(colours)


def train_colour_classifier(images: Images, scenes: list[Scene]) -> torch.nn.Linear:
    """Return a linear classifier of the colour of a box."""
    histograms, colours = compute_histograms(images, scenes)
    return train_linear(histograms, colours, len(COLOURS))


def train_linear(x: torch.Tensor, y: torch.Tensor, classes: int) -> torch.nn.Linear:
    """Return a linear classifier of features x (N, D), trained on the classes y (N,)."""
    torch.manual_seed(0)
    net = torch.nn.Linear(x.shape[1], classes)
    optimiser = torch.optim.AdamW(net.parameters(), 0.05, weight_decay=0.01)
    for _ in range(300):
        loss = torch.nn.functional.cross_entropy(net(x), y)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return net


def measure_colour_rate(net: torch.nn.Linear, images: Images, scenes: list[Scene]) -> float:
    """Return the share of boxes whose colour is that of their phrase."""
    histograms, colours = compute_histograms(images, scenes)
    return float((net(histograms).argmax(1) == colours).float().mean())


def measure_frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the Fréchet distance of two sets of features (N, D) in the main directions of `b`.

    Heusel et al., arXiv 1706.08500.
    """
    directions = np.linalg.svd(b - b.mean(0), full_matrices=False)[2][:DIRECTIONS].T
    a = a @ directions
    b = b @ directions
    c1 = np.cov(a.T)
    c2 = np.cov(b.T)
    values, vectors = np.linalg.eigh(c2)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ c1 @ root), 0, None)).sum()
    means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(means + np.trace(c1) + np.trace(c2) - 2 * cross)


def generate_images(
    painter: Painter, scenes: list[Scene], seeds: list[np.random.SeedSequence]
) -> Images:
    """Return the images that a painter generates of scenes in one batch."""
    return [painting.image for painting in painter(scenes, seeds)]


def load_judge(path: Path | None) -> Any:
    """Return the judge that a Python file defines, or None without a file."""
    if path is None:
        return None
    spec = importlib.util.spec_from_file_location("judge", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Judge("Dog")


def save_images(folder: Path | None, name: str, images: Images) -> None:
    """Write images as `NAME-NUMBER.png` into a folder, if there is one."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{name}-{number}.png")


def format_table(rows: dict[str, dict[str, float | None]]) -> str:
    """Return a Markdown table of rows that have the same columns."""
    columns = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name, values in rows.items():
        cells = [format_figure(value) for value in values.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_figure(value: float | None) -> str:
    """Return a figure with three decimals, or with one if it is 10 or more."""
    if value is None:
        return "not measured"
    if abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:.1f}"
