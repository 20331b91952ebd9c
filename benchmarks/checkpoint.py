#!/usr/bin/env python3
"""How good is the embedded checkpoint? The same held-out layouts of 10 to 100 dogs, painted in four ways, measured.

usage: benchmarks/checkpoint.py [--images 2] [--counts 10 30 50 100] [--model synthgen-tiny] [--judge judge.py] [--json]
rows: paste (held-out cut-outs), the same after the autoencoder's round trip, mixture, and mixture's ground without dogs.
columns:
  hit rate     share of boxes in which an independent detector finds a dog, IoU >= 0.5 (needs --judge: a file with a class
               Judge, `Judge("Dog")(picture) -> (boxes, scores)`, boxes in [0, 1])
  variety      mean squared distance of all pairs of box crops in EfficientNet-Lite0 features, relative to paste's
  count error  sum of |found - asked| over the sum of asked; by centernet-tiny, trained on pasted scenes alone
  colour       share of boxes that show the asked colour; by a linear classifier of colour histograms of pasted boxes
  Fréchet      distance of the crops' features to another draw of pasted ones, in the 64 main directions of those
  nearest      mean distance of a crop's features to the nearest of 800 training crops: it must not copy
  seconds      an image, on all cores
Needs `pip install 'synthgen-layouts[train]'`.
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image

from synthgen.config import load_job
from synthgen.diffusion.models import EMBEDDED, find_model
from synthgen.pipelines import Numerics, Painter
from synthgen.pipelines.mixture.pipeline import MixturePainter
from synthgen.pipelines.paste import Spec as PasteSpec
from synthgen.scene import Scene, SceneSpec
from synthgen.train.vae import Features, to_pixels, to_tensor
from synthgen.verify.centernet import CenterNet, iou

COLOURS = ("brown", "white", "black")
SCENES = SceneSpec(object=tuple(f"a {c} {{category}}" for c in COLOURS), background="a field of grass")
Pictures = list[NDArray[np.uint8]]
CONTEXT, THRESHOLD = 0.35, 0.25  # of the judge
DIRECTIONS = 64


@dataclass
class Meters:
    """What is measured with, and what it is compared to."""

    judge: Any
    detector: CenterNet
    features: Features
    reference: NDArray[np.float64] = field(init=False)  # features of pasted crops
    training: NDArray[np.float64] = field(init=False)  # features of training crops
    colours: torch.nn.Linear = field(init=False)

    def __post_init__(self) -> None:
        scenes = draw_scenes(100, 8, seed=10**6)
        pictures = paste("train")(scenes, seeds(scenes, 10**6))
        self.training = self.describe(pictures, scenes)
        self.colours = learn_colours(pictures, scenes)
        again = draw_scenes(100, 4, seed=2 * 10**6)
        self.reference = self.describe(paste("heldout")(again, seeds(again, 2 * 10**6)), again)

    @torch.no_grad()
    def describe(self, pictures: Pictures, scenes: list[Scene]) -> NDArray[np.float64]:
        """Normalised EfficientNet features (boxes, 1280) of the square crops round the boxes."""
        crops = [c for p, s in zip(pictures, scenes, strict=True) for c in square_crops(p, s, 0, 160)]
        net, found = self.features.net, []
        for k in range(0, len(crops), 32):
            f = net.extract_features(to_tensor(np.stack(crops[k : k + 32]))).mean((2, 3))
            found.append(torch.nn.functional.normalize(f, dim=1).double().numpy())
        return np.concatenate(found)

    def measure(self, pictures: Pictures, scenes: list[Scene], seconds: float) -> dict[str, float | None]:
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


def draw_scenes(count: int, images: int, seed: int) -> list[Scene]:
    """Scenes of `count` dogs of the size in layouts/100dogs.yaml, on 1024 x 1024."""
    spec = load_job("100dogs", [f"layout.objects={{dog: {count}}}", "pipeline=paste"]).layout
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
            np.asarray(image.transform((side, side), Image.Transform.EXTENT, square(box, context), Image.Resampling.BICUBIC))
        )
    return crops


def square(box: list[float], context: float) -> tuple[float, float, float, float]:
    x, y, half = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, max(box[2] - box[0], box[3] - box[1]) * (0.5 + context)
    return x - half, y - half, x + half, y + half


def hit_rate(judge: Any, pictures: Pictures, scenes: list[Scene]) -> float:
    hits = []
    for picture, scene in zip(pictures, scenes, strict=True):
        for crop, box in zip(square_crops(picture, scene, CONTEXT, 300), scene.layout.boxes, strict=True):
            x0, y0, x1, _ = square(box.tolist(), CONTEXT)
            target = (box - np.array([x0, y0, x0, y0])) / (x1 - x0)
            boxes, scores = judge(Image.fromarray(crop))
            hits.append(bool(((iou(boxes, target[None])[:, 0] >= 0.5) & (scores >= THRESHOLD)).any()))
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
        for (x0, y0, x1, y1), phrase in zip(scene.layout.boxes.astype(int).tolist(), scene.phrases, strict=True):
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


def round_trip(vae: AutoencoderKL, pictures: Pictures) -> Pictures:
    with torch.no_grad():
        return [to_pixels(vae.decode(vae.encode(to_tensor(p[None])).latent_dist.mode()).sample)[0] for p in pictures]


def images_of(painter: Painter, scenes: list[Scene], numbers: list[np.random.SeedSequence]) -> Pictures:
    return [painting.image for painting in painter(scenes, numbers)]


def timed(make: Callable[..., Pictures], *args: Any) -> tuple[Pictures, float]:
    began = time.perf_counter()
    return make(*args), time.perf_counter() - began


def load_judge(path: Path | None) -> Any:
    if path is None:
        return None
    spec = importlib.util.spec_from_file_location("judge", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Judge("Dog")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2, help="of each count")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 30, 50, 100])
    parser.add_argument("--model", default="synthgen-tiny")
    parser.add_argument("--detector", type=Path, default=EMBEDDED / "centernet-tiny")
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--save", type=Path, help="folder for the pictures")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    recipe = load_job("100dogs", [f"pipeline.model={args.model}"]).pipeline
    numerics = Numerics(threads=torch.get_num_threads(), device="cuda" if torch.cuda.is_available() else "cpu")
    mixture = MixturePainter(recipe, SceneSpec(), numerics)  # type: ignore[arg-type]  # the recipe of the job is a mixture
    vae = AutoencoderKL.from_pretrained(find_model(args.model), subfolder="vae", torch_dtype=torch.float32).eval()
    detector = CenterNet.from_pretrained(args.detector, torch_dtype=torch.float32).eval()
    meters, held_out = Meters(load_judge(args.judge), detector, Features()), paste("heldout")
    rows: dict[str, dict[str, float | None]] = {}
    for count in args.counts:
        scenes = draw_scenes(count, args.images, seed=7)
        empty = [Scene(s.layout.select([]), s.background) for s in scenes]
        pasted, seconds = timed(held_out, scenes, seeds(scenes, 7))
        painted = {"paste": (pasted, seconds), "VAE round trip": timed(round_trip, vae, pasted)}
        painted["mixture"] = timed(images_of, mixture, scenes, seeds(scenes, 7))
        painted["ground"] = timed(images_of, mixture, empty, seeds(scenes, 7))
        for name, (pictures, seconds) in painted.items():
            rows[f"{name}, {count}"] = meters.measure(pictures, scenes, seconds / len(scenes))
            save(args.save, f"{name.replace(' ', '-')}-{count}", pictures)
    print(json.dumps(rows, indent=1) if args.json else table(rows))


def save(folder: Path | None, name: str, pictures: Pictures) -> None:
    for k, picture in enumerate(pictures if folder else []):
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{name}-{k}.png")


def table(rows: dict[str, dict[str, float | None]]) -> str:
    names = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for row, values in rows.items():
        cells = ["not measured" if v is None else f"{v:.3f}" if abs(v) < 10 else f"{v:.1f}" for v in values.values()]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
