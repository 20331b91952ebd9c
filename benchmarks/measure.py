"""What the benchmarks measure pictures with, and the scenes that they paint."""

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
    object=tuple(f"a {c} {{category}}" for c in COLOURS), background="a field of grass"
)
Pictures = list[NDArray[np.uint8]]
CONTEXT, THRESHOLD = 0.35, 0.25  # of the judge
DIRECTIONS = 64


@dataclass
class Meters:
    """What is measured with, and what it is compared to."""

    judge: Any
    detector: CenterNet
    features: Any
    layout: Sequence[str] = ()  # changes to the layout of the scenes that it compares with
    reference: NDArray[np.float64] = field(init=False)  # features of pasted crops
    training: NDArray[np.float64] = field(init=False)  # features of training crops
    colours: torch.nn.Linear = field(init=False)

    def __post_init__(self) -> None:
        scenes = draw_scenes(100, 8, 10**6, self.layout)
        pictures = paste("train")(scenes, seeds(scenes, 10**6))
        self.training = self.describe(pictures, scenes)
        self.colours = learn_colours(pictures, scenes)
        again = draw_scenes(100, 4, 2 * 10**6, self.layout)
        self.reference = self.describe(paste("heldout")(again, seeds(again, 2 * 10**6)), again)

    @torch.no_grad()
    def describe(self, pictures: Pictures, scenes: list[Scene]) -> NDArray[np.float64]:
        """Normalised EfficientNet features (boxes, 1280) of the square crops round the boxes."""
        crops = [
            c for p, s in zip(pictures, scenes, strict=True) for c in square_crops(p, s, 0, 160)
        ]
        net, found = self.features, []
        for k in range(0, len(crops), 32):
            f = net.extract_features(to_tensor(np.stack(crops[k : k + 32]))).mean((2, 3))
            found.append(torch.nn.functional.normalize(f, dim=1).double().numpy())
        return np.concatenate(found)

    def measure(
        self, pictures: Pictures, scenes: list[Scene], seconds: float
    ) -> dict[str, float | None]:
        f = self.describe(pictures, scenes)
        return {
            "hit rate": hit_rate(self.judge, pictures, scenes) if self.judge else None,
            "variety": spread(f) / spread(self.reference),
            "count error": count_error(self.detector, pictures, scenes),
            "colour": colour_rate(self.colours, pictures, scenes),
            "Fréchet": frechet(f, self.reference),
            "nearest": float((2 - 2 * (f @ self.training.T).max(1)).mean()),
            "seconds": seconds,
        }


def draw_scenes(count: int, images: int, seed: int, changes: Sequence[str] = ()) -> list[Scene]:
    """Scenes of `count` dogs on grass, laid out as in layouts/100dogs.yaml with these changes to it."""
    spec = load_job(
        "100dogs", [f"layout.objects={{dog: {count}}}", "pipeline=paste", *changes]
    ).layout
    rngs = [np.random.default_rng((seed, count, k)) for k in range(images)]
    return [SCENES.draw(spec.sample(rng), rng) for rng in rngs]


def seeds(scenes: list[Scene], seed: int) -> list[np.random.SeedSequence]:
    return [np.random.SeedSequence((seed, len(s.layout), k)) for k, s in enumerate(scenes)]


def paste(split: str) -> Callable[[list[Scene], list[np.random.SeedSequence]], Pictures]:
    return partial(images_of, PasteSpec(cutouts=split, grounds=split).load(SCENES, Numerics()))


def square_crops(picture: NDArray[np.uint8], scene: Scene, context: float, side: int) -> Pictures:
    """The square round each box, with `context` of its longer side on each side, at `side` px."""
    image, crops = Image.fromarray(picture), []
    for box in scene.layout.boxes.tolist():
        crops.append(
            np.asarray(
                image.transform(
                    (side, side),
                    Image.Transform.EXTENT,
                    square(box, context),
                    Image.Resampling.BICUBIC,
                )
            )
        )
    return crops


def square(box: list[float], context: float) -> tuple[float, float, float, float]:
    x, y, half = (
        (box[0] + box[2]) / 2,
        (box[1] + box[3]) / 2,
        max(box[2] - box[0], box[3] - box[1]) * (0.5 + context),
    )
    return x - half, y - half, x + half, y + half


def hit_rate(judge: Any, pictures: Pictures, scenes: list[Scene]) -> float:
    hits = []
    for picture, scene in zip(pictures, scenes, strict=True):
        for crop, box in zip(
            square_crops(picture, scene, CONTEXT, 300), scene.layout.boxes, strict=True
        ):
            x0, y0, x1, _ = square(box.tolist(), CONTEXT)
            target = (box - np.array([x0, y0, x0, y0])) / (x1 - x0)
            boxes, scores = judge(Image.fromarray(crop))
            hits.append(
                bool(((box_iou(boxes, target[None])[:, 0] >= 0.5) & (scores >= THRESHOLD)).any())
            )
    return float(np.mean(hits))


def spread(f: NDArray[np.float64]) -> float:
    """Mean squared distance between all pairs of normalised features (N, D)."""
    n = len(f)
    return float((2 - 2 * f @ f.T).sum() / (n * (n - 1)))


def count_error(detector: CenterNet, pictures: Pictures, scenes: list[Scene]) -> float:
    wrong, asked = 0, 0
    for picture, scene in zip(pictures, scenes, strict=True):
        found = detector.detect(picture).at_least(detector.config["threshold"])
        wrong += abs(found.categories.count("dog") - len(scene.layout))
        asked += len(scene.layout)
    return wrong / asked


def histograms(pictures: Pictures, scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Joint colour histogram (boxes, 216) of the middle of each box, and the colour that was asked for."""
    rows, asked = [], []
    for picture, scene in zip(pictures, scenes, strict=True):
        for (x0, y0, x1, y1), phrase in zip(
            scene.layout.boxes.astype(int).tolist(), scene.phrases, strict=True
        ):
            w, h = x1 - x0, y1 - y0
            middle = picture[y0 + h // 6 : y1 - h // 6, x0 + w // 6 : x1 - w // 6].reshape(-1, 3)
            bins = (middle.astype(int) * 6 // 256) @ [36, 6, 1]
            rows.append(np.sqrt(np.bincount(bins, minlength=216) / len(bins)))
            asked.append(next(i for i, c in enumerate(COLOURS) if c in phrase))
    return torch.tensor(np.array(rows), dtype=torch.float32), torch.tensor(asked)


def learn_colours(pictures: Pictures, scenes: list[Scene]) -> torch.nn.Linear:
    x, y = histograms(pictures, scenes)
    torch.manual_seed(0)
    net = torch.nn.Linear(x.shape[1], len(COLOURS))
    optimiser = torch.optim.AdamW(net.parameters(), 0.05, weight_decay=0.01)
    for _ in range(300):
        loss = torch.nn.functional.cross_entropy(net(x), y)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return net


def colour_rate(net: torch.nn.Linear, pictures: Pictures, scenes: list[Scene]) -> float:
    x, y = histograms(pictures, scenes)
    return float((net(x).argmax(1) == y).float().mean())


def frechet(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Fréchet distance of two sets of features in the main directions of the second (Heusel et al., arXiv 1706.08500)."""
    directions = np.linalg.svd(b - b.mean(0), full_matrices=False)[2][:DIRECTIONS].T
    (m1, c1), (m2, c2) = ((x.mean(0), np.cov(x.T)) for x in (a @ directions, b @ directions))
    values, vectors = np.linalg.eigh(c2)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ c1 @ root), 0, None)).sum()
    return float(((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * cross)


def images_of(
    painter: Painter, scenes: list[Scene], numbers: list[np.random.SeedSequence]
) -> Pictures:
    return [painting.image for painting in painter(scenes, numbers)]


def load_judge(path: Path | None) -> Any:
    if path is None:
        return None
    spec = importlib.util.spec_from_file_location("judge", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Judge("Dog")


def save(folder: Path | None, name: str, pictures: Pictures) -> None:
    for k, picture in enumerate(pictures if folder else []):
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{name}-{k}.png")


def table(rows: dict[str, dict[str, float | None]]) -> str:
    names = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for row, values in rows.items():
        cells = [
            "not measured" if v is None else f"{v:.3f}" if abs(v) < 10 else f"{v:.1f}"
            for v in values.values()
        ]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
