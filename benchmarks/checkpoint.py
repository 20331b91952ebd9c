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
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from measure import Meters, Pictures, draw_scenes, images_of, load_judge, paste, save, seeds, table

from synthgen.config import load_job
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion.models import EMBEDDED, find_model
from synthgen.pipelines.mixture.painter import MixturePainter
from synthgen.scenes.scene import Scene, SceneSpec
from synthgen.training.vae.trainee import to_pixels, to_tensor
from synthgen.verification import efficientnet
from synthgen.verification.centernet import CenterNet


def round_trip(vae: AutoencoderKL, pictures: Pictures) -> Pictures:
    with torch.no_grad():
        return [
            to_pixels(vae.decode(vae.encode(to_tensor(p[None])).latent_dist.mode()).sample)[0]
            for p in pictures
        ]


def timed(make: Callable[..., Pictures], *args: Any) -> tuple[Pictures, float]:
    began = time.perf_counter()
    return make(*args), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2, help="of each count")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 30, 50, 100])
    parser.add_argument("--model", default="synthgen-tiny")
    parser.add_argument("--detector", type=Path, default=EMBEDDED / "centernet-tiny")
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--save", type=Path, help="folder for the pictures")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    recipe = load_job("100dogs", [f"pipeline.model={args.model}"]).pipeline
    numerics = Numerics(
        threads=torch.get_num_threads(), device="cuda" if torch.cuda.is_available() else "cpu"
    )
    mixture = MixturePainter(recipe, SceneSpec(), numerics)  # type: ignore[arg-type]  # the recipe of the job is a mixture
    vae = AutoencoderKL.from_pretrained(
        find_model(args.model), subfolder="vae", dtype=torch.float32
    ).eval()
    detector = CenterNet.from_pretrained(args.detector, dtype=torch.float32).eval()
    meters, held_out = (
        Meters(load_judge(args.judge), detector, efficientnet.load()),
        paste("heldout"),
    )
    rows: dict[str, dict[str, float | None]] = {}
    for count in args.counts:
        scenes = draw_scenes(count, args.images, 7)
        empty = [Scene(s.layout.select([]), s.background) for s in scenes]
        pasted, seconds = timed(held_out, scenes, seeds(scenes, 7))
        painted = {"paste": (pasted, seconds), "VAE round trip": timed(round_trip, vae, pasted)}
        painted["mixture"] = timed(images_of, mixture, scenes, seeds(scenes, 7))
        painted["ground"] = timed(images_of, mixture, empty, seeds(scenes, 7))
        for name, (pictures, seconds) in painted.items():
            rows[f"{name}, {count}"] = meters.measure(pictures, scenes, seconds / len(scenes))
            save(args.save, f"{name.replace(' ', '-')}-{count}", pictures)
    print(json.dumps(rows, indent=1) if args.json else table(rows))


if __name__ == "__main__":
    main()
