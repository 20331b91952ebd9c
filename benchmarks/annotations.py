#!/usr/bin/env python3
"""Measure whether training teaches two methods to place objects in their boxes.

usage: benchmarks/annotations.py [--tokens FOLDER] [--mask FOLDER] [--images 8] [--dogs 10]
                                 [--keep FOLDER] [--judge judge.py] [--json]
  --tokens, --mask: checkpoints of jobs/train-annotation-tokens.yaml and
                    jobs/train-annotation-mask.yaml
rows, for each of the methods annotation_tokens and annotation_mask:
  before    the embedded checkpoint, which was not trained to read annotations
  after     the trained checkpoint
  shuffled  the trained checkpoint with the boxes of another image: the result of chance
columns as in benchmarks/checkpoint.py; seconds per image, of one core or of the GPU.
Needs `pip install 'synthgen-layouts[train]'`.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from measure import (
    SCENES,
    Images,
    Meters,
    format_table,
    generate_images,
    load_judge,
    make_seeds,
    sample_scenes,
    save_images,
)

from synthgen.config import load_job
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion.sources import EMBEDDED
from synthgen.scenes.scene import Scene
from synthgen.verification import efficientnet
from synthgen.verification.centernet import CenterNet

SIDE = 320  # px of the canvas
SIZE = ["layout.size=[56, 76]", "layout.gap=2"]
LAYOUT = [f"layout.canvas=[{SIDE}, {SIDE}]", *SIZE]
RECIPES = {
    "tokens": ["pipeline=annotation-tokens-tiny", "pipeline.tile=112", "pipeline.overlap=0.05"],
    "mask": ["pipeline=annotation-mask-tiny", "pipeline.tile=112"],
}
GUIDANCE = ["pipeline.guidance_scale=3.5", "pipeline.steps=12"]
COLUMNS = ("hit rate", "variety", "count error", "colour", "seconds")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The processor time of one thread does not count other processes.
clock = time.perf_counter if torch.cuda.is_available() else time.process_time


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--mask", type=Path)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--dogs", type=int, default=10, help="number of dogs in each image")
    parser.add_argument("--keep", type=Path, help="folder for the images")
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    detector = CenterNet.from_pretrained(EMBEDDED / "centernet-tiny", dtype=torch.float32).eval()
    meters = Meters(load_judge(args.judge), detector, efficientnet.load(), SIZE)
    scenes = sample_scenes(args.dogs, args.images, 21, LAYOUT)
    rows = {}
    for method in RECIPES:
        for name, generated_scenes, recipe in list_rows(method, getattr(args, method), scenes):
            images, seconds = generate(recipe, generated_scenes)
            save_images(args.keep, f"{method}-{name}", images)
            figures = meters.measure(images, scenes, seconds)
            rows[f"{method}, {name}"] = {column: figures[column] for column in COLUMNS}
    print(json.dumps(rows, indent=1) if args.json else format_table(rows))


def list_rows(
    method: str, checkpoint: Path | None, scenes: list[Scene]
) -> list[tuple[str, list[Scene], list[str]]]:
    """Return the name, the scenes to generate, and the recipe of each row of a method."""
    rows = [("before", scenes, RECIPES[method])]
    if checkpoint is not None:
        recipe = [*RECIPES[method], *GUIDANCE, f"pipeline.model={checkpoint}"]
        rows.append(("after", scenes, recipe))
        rows.append(("shuffled", scenes[1:] + scenes[:1], recipe))
    return rows


def generate(recipe: list[str], scenes: list[Scene]) -> tuple[Images, float]:
    """Return an image of each scene, and the seconds per image."""
    job = load_job("100dogs", [*recipe, *LAYOUT, "layout.objects={dog: 1}"])
    painter = job.pipeline.load(
        SCENES, Numerics(1, 32, 1, DEVICE, job.pipeline.choose_dtype(DEVICE))
    )
    start = clock()
    images = []
    for scene, seed in zip(scenes, make_seeds(scenes, 21), strict=True):
        images += generate_images(painter, [scene], [seed])
    return images, (clock() - start) / len(scenes)


if __name__ == "__main__":
    main()
