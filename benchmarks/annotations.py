#!/usr/bin/env python3
"""Does training help annotations as tokens, and annotations as a mask, to put objects into their boxes?

usage: benchmarks/annotations.py [--tokens FOLDER] [--mask FOLDER] [--images 8] [--dogs 10] [--keep FOLDER] [--judge judge.py]
                                 [--json]
  --tokens, --mask: checkpoints of jobs/train-annotation-tokens.yaml and jobs/train-annotation-mask.yaml
rows, for each method:
  before    the embedded checkpoint, which was not trained to read annotations
  after     the trained one
  shuffled  the trained one told of another picture's boxes: what its dogs would score by chance
columns as in benchmarks/checkpoint.py; seconds an image: of one core, or of the GPU.
Needs `pip install 'synthgen-layouts[train]'`.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from measure import SCENES, Meters, Pictures, draw_scenes, images_of, load_judge, save, seeds, table

from synthgen.config import load_job
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion.models import EMBEDDED
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
GUIDED = ["pipeline.guidance_scale=3.5", "pipeline.steps=12"]
COLUMNS = ("hit rate", "variety", "count error", "colour", "seconds")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
clock = (
    time.perf_counter if torch.cuda.is_available() else time.process_time
)  # one thread: what else runs does not count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--mask", type=Path)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--dogs", type=int, default=10, help="in each")
    parser.add_argument("--keep", type=Path, help="folder for the pictures")
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    detector = CenterNet.from_pretrained(EMBEDDED / "centernet-tiny", dtype=torch.float32).eval()
    meters = Meters(load_judge(args.judge), detector, efficientnet.load(), SIZE)
    scenes, rows = draw_scenes(args.dogs, args.images, 21, LAYOUT), {}
    for method in RECIPES:
        for name, told, recipe in variants(method, getattr(args, method), scenes):
            pictures, seconds = paint(recipe, told)
            save(args.keep, f"{method}-{name}", pictures)
            found = meters.measure(pictures, scenes, seconds)
            rows[f"{method}, {name}"] = {column: found[column] for column in COLUMNS}
    print(json.dumps(rows, indent=1) if args.json else table(rows))


def variants(
    method: str, trained: Path | None, scenes: list[Scene]
) -> list[tuple[str, list[Scene], list[str]]]:
    """The rows of a method: name, what it is told, and its recipe."""
    rows = [("before", scenes, RECIPES[method])]
    if trained is not None:
        recipe = [*RECIPES[method], *GUIDED, f"pipeline.model={trained}"]
        rows += [("after", scenes, recipe), ("shuffled", scenes[1:] + scenes[:1], recipe)]
    return rows


def paint(recipe: list[str], scenes: list[Scene]) -> tuple[Pictures, float]:
    """Pictures of scenes, and seconds each."""
    painter = load_job("100dogs", [*recipe, *LAYOUT, "layout.objects={dog: 1}"]).pipeline.load(
        SCENES, Numerics(1, 32, 1, DEVICE)
    )
    began = clock()
    pictures = [
        images_of(painter, [s], [q])[0] for s, q in zip(scenes, seeds(scenes, 21), strict=True)
    ]
    return pictures, (clock() - began) / len(scenes)


if __name__ == "__main__":
    main()
