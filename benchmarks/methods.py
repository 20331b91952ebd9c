#!/usr/bin/env python3
"""Every method, the same layouts, the same checkpoint: do the labels hold, and what does it cost?

usage: benchmarks/methods.py [--methods mixture …] [--counts 10 30 100] [--images 8] [--keep FOLDER] [--judge judge.py] [--json]
rows: a method's recipe for the embedded checkpoint (`paste` for comparison), and how many dogs each picture was asked to have.
columns: hit rate, variety and count error as in benchmarks/checkpoint.py, and
  seconds   an image: of one core, or of the GPU
  calls     of the UNet, an image
  passes    windows that went through the UNet, an image: equal ones go together in a call
  GB        most memory that the process had, or on the GPU
Each row is painted in a process of its own; with --keep it is kept there with its pictures and a sheet, and not painted again.
Needs `pip install 'synthgen-layouts[train]'`.
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from measure import SCENES, Meters, draw_scenes, load_judge, save, seeds, table
from PIL import Image, ImageDraw

from synthgen.config import load_job
from synthgen.diffusion.models import EMBEDDED
from synthgen.pipelines import Numerics
from synthgen.scene import Scene
from synthgen.train.vae import Features
from synthgen.verify.centernet import CenterNet

METHODS = {
    "paste": ["pipeline=paste", "pipeline.cutouts=heldout", "pipeline.grounds=heldout"],
    "mixture": ["pipeline=mixture-tiny"],
    "layered": ["pipeline=layered-tiny"],
    "layered, mixed": ["pipeline=layered-tiny", "pipeline.variant=mixed"],
    "grounded": ["pipeline=grounded-tiny"],
    "regional_attention": ["pipeline=regional-attention-tiny"],
    "annotation_mask": ["pipeline=annotation-mask-tiny"],
    "annotation_tokens": ["pipeline=annotation-tokens-tiny", "pipeline.steps=3"],  # the canvas in one piece: 9 s a step
}
LAYOUT = ["layout.canvas=[896, 896]", "layout.size=[56, 76]", "layout.gap=6"]
SHEET = 320  # px, a picture's side on the sheet
STRIP = 448  # px, on a method's own strip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--images", type=int, default=8, help="of each count")
    parser.add_argument("--keep", type=Path, help="folder for pictures, rows, the sheet and a strip a method")
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    detector = CenterNet.from_pretrained(EMBEDDED / "centernet-tiny", dtype=torch.float32).eval()
    meters = Meters(load_judge(args.judge), detector, Features(), LAYOUT)
    with TemporaryDirectory() as scratch:
        keep = args.keep or Path(scratch)
        rows = {f"{m}, {n}": row(keep, m, n, args.images, meters) for n in args.counts for m in args.methods}
        sheet(keep, args.methods, args.counts).save(keep / "methods.jpg", quality=88)
        for method in args.methods:
            strip(keep, method, args.counts).save(keep / f"{slug(method)}.jpg", quality=82)
    print(json.dumps(rows, indent=1) if args.json else table(rows))


def row(keep: Path, method: str, count: int, images: int, meters: Meters) -> dict[str, Any]:
    """The figures of one row, from where they are kept if they are."""
    kept = keep / f"{slug(method)}-{count}.json"
    if not kept.is_file():
        scenes = draw_scenes(count, images, 11, LAYOUT)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pictures, cost = pool.submit(paint, method, scenes).result()
        found = meters.measure(pictures, scenes, cost.pop("seconds"))
        chosen = {name: found[name] for name in ("hit rate", "variety", "count error", "colour", "seconds")}
        save(keep, kept.stem, pictures)
        kept.write_text(json.dumps({**chosen, **cost}))
    figures: dict[str, Any] = json.loads(kept.read_text())
    return figures


def paint(
    method: str, scenes: Sequence[Scene], changes: Sequence[str] = ()
) -> tuple[list[np.ndarray], dict[str, float]]:
    """Pictures of the scenes one by one, and what they cost an image.

    Args:
        changes: further `key=value` of the job.
    """
    torch.set_num_threads(1)
    gpu = torch.cuda.is_available()
    spec = load_job("100dogs", [*METHODS[method], *LAYOUT, *changes]).pipeline
    painter: Any = spec.load(SCENES, Numerics(device="cuda" if gpu and spec.uses_torch else "cpu"))
    passes: list[int] = []
    if isinstance(unet := getattr(getattr(painter, "pipeline", None), "unet", None), UNet2DConditionModel):
        unet.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    clock = time.perf_counter if gpu else time.process_time  # one thread: what else runs here does not count
    began = clock()
    pictures = [painter([s], [seed])[0].image for s, seed in zip(scenes, seeds(list(scenes), 11), strict=True)]
    seconds = (clock() - began) / len(scenes)
    memory = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cost = {"seconds": seconds, "calls": len(passes) / len(scenes), "passes": sum(passes) / len(scenes), "GB": memory / 2**30}
    return pictures, cost


def sheet(keep: Path, methods: Sequence[str], counts: Sequence[int]) -> Image.Image:
    """The first picture of every row: a column a method, a row a count."""
    image = Image.new("RGB", (SHEET * len(methods), (SHEET + 16) * len(counts)), "white")
    draw = ImageDraw.Draw(image)
    for x, method in enumerate(methods):
        for y, count in enumerate(counts):
            picture = Image.open(keep / f"{slug(method)}-{count}-0.png").resize((SHEET, SHEET), Image.Resampling.LANCZOS)
            draw.text((x * SHEET + 4, y * (SHEET + 16) + 2), f"{method}, {count}", "black")
            image.paste(picture, (x * SHEET, y * (SHEET + 16) + 16))
    return image


def strip(keep: Path, method: str, counts: Sequence[int]) -> Image.Image:
    """A method's first pictures side by side, for its page in docs/methods/."""
    image = Image.new("RGB", ((STRIP + 8) * len(counts) - 8, STRIP), "white")
    for x, count in enumerate(counts):
        picture = Image.open(keep / f"{slug(method)}-{count}-0.png").convert("RGB")
        image.paste(picture.resize((STRIP, STRIP), Image.Resampling.LANCZOS), (x * (STRIP + 8), 0))
    return image


def slug(method: str) -> str:
    """Its name in file names."""
    return method.replace(", ", "-")


if __name__ == "__main__":
    main()
