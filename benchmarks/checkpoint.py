#!/usr/bin/env python3
"""Measure the quality of the embedded checkpoint on held-out layouts of 10 to 100 dogs.

usage: benchmarks/checkpoint.py [--images 2] [--counts 10 30 50 100] [--model synthgen-tiny]
                                [--judge judge.py] [--json]
rows: paste (held-out cut-outs), the same images after encoding and decoding by the autoencoder,
mixture, and the background of mixture without dogs.
columns:
  hit rate     share of boxes in which an independent detector finds a dog, IoU >= 0.5; needs
               --judge: a file with a class Judge, whose `Judge("Dog")(image)` returns
               `(boxes, scores)` with boxes in [0, 1]
  variety      mean squared distance of all pairs of box crops in EfficientNet-Lite0 features,
               relative to that of paste
  count error  sum of |found dogs - boxes| over the sum of boxes; by centernet-tiny, which was
               trained on pasted scenes alone
  colour       share of boxes that have the requested colour; by a linear classifier of colour
               histograms of pasted boxes
  Fréchet      distance of the crops' features to those of other pasted crops, in the 64 main
               directions of the latter
  nearest      mean distance of a crop's features to the nearest of 800 training crops; a small
               distance would show that the checkpoint copies them
  seconds      per image, on all cores
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
from measure import (
    Images,
    Meters,
    format_table,
    generate_images,
    load_judge,
    load_paste,
    make_seeds,
    sample_scenes,
    save_images,
)

from synthgen.config import load_job
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion.sources import EMBEDDED, find_model
from synthgen.pipelines.mixture.painter import MixturePainter
from synthgen.scenes.scene import Scene, SceneSpec
from synthgen.training.vae.trainee import to_pixels, to_tensor
from synthgen.verification import efficientnet
from synthgen.verification.centernet import CenterNet


@torch.no_grad()
def encode_and_decode(vae: AutoencoderKL, images: Images) -> Images:
    """Return images after one pass through the autoencoder."""
    decoded = []
    for image in images:
        latents = vae.encode(to_tensor(image[None])).latent_dist.mode()
        decoded.append(to_pixels(vae.decode(latents).sample)[0])
    return decoded


def measure_seconds(function: Callable[..., Images], *args: Any) -> tuple[Images, float]:
    """Return the images that a function makes, and the seconds that it takes."""
    start = time.perf_counter()
    images = function(*args)
    return images, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2, help="number of images of each count")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 30, 50, 100])
    parser.add_argument("--model", default="synthgen-tiny")
    parser.add_argument("--detector", type=Path, default=EMBEDDED / "centernet-tiny")
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--save", type=Path, help="folder for the images")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    recipe: Any = load_job("100dogs", [f"pipeline.model={args.model}"]).pipeline
    device = "cuda" if torch.cuda.is_available() else "cpu"
    numerics = Numerics(
        threads=torch.get_num_threads(), device=device, dtype=recipe.choose_dtype(device)
    )
    mixture = MixturePainter(recipe, SceneSpec(), numerics)
    folder = find_model(args.model)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", dtype=torch.float32).eval()
    detector = CenterNet.from_pretrained(args.detector, dtype=torch.float32).eval()
    meters = Meters(load_judge(args.judge), detector, efficientnet.load())
    paste = load_paste("heldout")
    rows: dict[str, dict[str, float | None]] = {}
    for count in args.counts:
        scenes = sample_scenes(count, args.images, 7)
        empty = [Scene(scene.layout.select([]), scene.background) for scene in scenes]
        # Each call gets new seeds, because a seed sequence may change while it is used.
        pasted = measure_seconds(paste, scenes, make_seeds(scenes, 7))
        results = {
            "paste": pasted,
            "VAE round trip": measure_seconds(encode_and_decode, vae, pasted[0]),
            "mixture": measure_seconds(generate_images, mixture, scenes, make_seeds(scenes, 7)),
            "ground": measure_seconds(generate_images, mixture, empty, make_seeds(scenes, 7)),
        }
        for name, (images, seconds) in results.items():
            rows[f"{name}, {count}"] = meters.measure(images, scenes, seconds / len(scenes))
            save_images(args.save, f"{name.replace(' ', '-')}-{count}", images)
    print(json.dumps(rows, indent=1) if args.json else format_table(rows))


if __name__ == "__main__":
    main()
