#!/usr/bin/env python3
"""Measure every method on the same layouts with the same checkpoint: do the labels hold, and what does it cost?

usage: benchmarks/methods.py [--methods mixture …] [--counts 30 100] [--scales 1 1.25 1.5 2] [--boxes 500]
                             [--changes pipeline.steps=7] [--judge judge.py] [--results FILE] [--images FOLDER]

A row is a method's recipe for the embedded checkpoint (`paste` for comparison), the dogs of 56-76 px in each
image of 896 x 896 px, and `pipeline.scale`. There are as many images as hold `--boxes` boxes.
columns: hit rate, variety, count error and colour as in benchmarks/checkpoint.py, and
  seconds   an image: of one core, or of the GPU
  calls     of the UNet, an image
  passes    windows that went through the UNet, an image: equal ones go together in a call
  GB        most memory that the process had, or on the GPU
Each row is generated in a process of its own. Rows are added to the JSON file of results as they are measured;
a row that is there is not measured again. `benchmarks/tables.py` makes the table of docs/explanation/methods.md from it.
With `--images`, each row's first image is written to the folder, and then a sheet of all that are there.
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
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from measure import SCENES, Meters, draw_scenes, load_judge, seeds
from PIL import Image, ImageDraw

from synthgen.config import load_job
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion.models import EMBEDDED
from synthgen.scenes.scene import Scene
from synthgen.verification import efficientnet
from synthgen.verification.centernet import CenterNet

RESULTS = Path(__file__).parent / "results" / "methods.json"
METHODS = {
    "paste": ["pipeline=paste", "pipeline.cutouts=heldout", "pipeline.grounds=heldout"],
    "mixture": ["pipeline=mixture-tiny"],
    "layered": ["pipeline=layered-tiny"],
    "layered, mixed": ["pipeline=layered-tiny", "pipeline.variant=mixed"],
    "grounded": ["pipeline=grounded-tiny"],
    "regional_attention": ["pipeline=regional-attention-tiny"],
    "annotation_mask": ["pipeline=annotation-mask-tiny"],
    "annotation_tokens": [
        "pipeline=annotation-tokens-tiny",
        "pipeline.steps=3",
    ],  # the canvas in one piece: 9 s a step
}
LAYOUT = ["layout.canvas=[896, 896]", "layout.size=[56, 76]", "layout.gap=6"]
KEYS = ("method", "dogs", "scale", "changes")
FIGURES = ("hit rate", "variety", "count error", "colour", "seconds")
SHEET = 448  # px, an image's side on the sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--counts", type=int, nargs="+", default=[30, 100])
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 1.25, 1.5, 2])
    parser.add_argument("--boxes", type=int, default=500, help="of each row, at least")
    parser.add_argument("--changes", nargs="*", default=[], help="further key=value of the job")
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--images", type=Path, help="folder of images and their sheet")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.results.is_file():
        rows = json.loads(args.results.read_text())
    torch.set_num_threads(1)
    detector = CenterNet.from_pretrained(EMBEDDED / "centernet-tiny", dtype=torch.float32).eval()
    meters = Meters(load_judge(args.judge), detector, efficientnet.load(), LAYOUT)
    for key in list_keys(args):
        if not any(all(row[name] == key[name] for name in KEYS) for row in rows):
            rows.append({**key, **measure_row(key, args.boxes, meters, args.images)})
            args.results.parent.mkdir(parents=True, exist_ok=True)
            args.results.write_text(json.dumps(rows, indent=1) + "\n")
    if args.images is not None:
        make_sheet(args.images).save(args.images / "methods.jpg", quality=88)


def list_keys(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the keys of the rows that are asked for; `paste`, which generates nothing, is measured at scale 1 alone."""
    keys = []
    for method in args.methods:
        for dogs in args.counts:
            for scale in args.scales if method != "paste" else [1.0]:
                keys.append(
                    {"method": method, "dogs": dogs, "scale": scale, "changes": args.changes}
                )
    return keys


def measure_row(
    key: dict[str, Any], boxes: int, meters: Meters, folder: Path | None
) -> dict[str, Any]:
    """Generate the images of a row in a process of its own, and measure them."""
    images = -(-boxes // key["dogs"])
    scenes = draw_scenes(key["dogs"], images, 11, LAYOUT)
    changes = list(key["changes"])
    if key["method"] != "paste":
        changes.append(f"pipeline.scale={key['scale']}")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        generated, cost = pool.submit(generate, key["method"], scenes, changes).result()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generated[0]).save(
            folder / f"{key['method']}, {key['dogs']}, {key['scale']:g}.png"
        )
    found = meters.measure(generated, scenes, cost.pop("seconds"))
    figures = {name: found[name] for name in FIGURES} | cost
    rounded = {name: None if value is None else round(value, 4) for name, value in figures.items()}
    return {"boxes": images * key["dogs"], **rounded}


def generate(
    method: str, scenes: Sequence[Scene], changes: Sequence[str] = ()
) -> tuple[list[np.ndarray], dict[str, float]]:
    """Generate the scenes one by one, and return the images (H, W, 3) and what an image cost.

    Args:
        changes: further `key=value` of the job.
    """
    torch.set_num_threads(1)
    gpu = torch.cuda.is_available()
    spec = load_job("100dogs", [*METHODS[method], *LAYOUT, *changes]).pipeline
    painter: Any = spec.load(SCENES, Numerics(device="cuda" if gpu and spec.uses_torch else "cpu"))
    passes: list[int] = []
    unet = getattr(getattr(painter, "pipeline", None), "unet", None)
    if isinstance(unet, UNet2DConditionModel):
        unet.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    clock = (
        time.perf_counter if gpu else time.process_time
    )  # one thread: what else runs here does not count
    began = clock()
    images = []
    for scene, seed in zip(scenes, seeds(list(scenes), 11), strict=True):
        images.append(painter([scene], [seed])[0].image)
    count = len(scenes)
    seconds = (clock() - began) / count
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if gpu:
        memory = torch.cuda.max_memory_allocated()
    cost = {
        "seconds": seconds,
        "calls": len(passes) / count,
        "passes": sum(passes) / count,
        "GB": memory / 2**30,
    }
    return images, cost


def make_sheet(folder: Path) -> Image.Image:
    """Return the first images of all rows that are in a folder, four in a line."""
    files = sorted(folder.glob("*.png"))
    sheet = Image.new("RGB", (4 * SHEET, -(-len(files) // 4) * (SHEET + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, file in enumerate(files):
        x, y = number % 4 * SHEET, number // 4 * (SHEET + 16)
        draw.text((x + 4, y + 2), file.stem, "black")
        sheet.paste(Image.open(file).resize((SHEET, SHEET), Image.Resampling.LANCZOS), (x, y + 16))
    return sheet


if __name__ == "__main__":
    main()
