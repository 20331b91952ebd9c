#!/usr/bin/env python3
"""Measure the labels and the cost of every method on the same layouts with the same checkpoint.

usage: benchmarks/methods.py [--methods mixture …] [--counts 30 100] [--scales 1 1.25 1.5 2]
                             [--boxes 500] [--changes pipeline.steps=7] [--judge judge.py]
                             [--results FILE] [--images FOLDER]

A row is a method's recipe for the embedded checkpoint (`paste` for comparison), the number of dogs
of 56-76 px, and `pipeline.scale`. An image of 100 dogs has 896 x 896 px, one of 30 dogs 640 x 640
px. Each row has as many images as are needed for `--boxes` boxes.
columns: hit rate, variety, count error and colour as in benchmarks/checkpoint.py, and
  seconds   per image, of one core or of the GPU
  calls     calls of the UNet per image
  passes    windows per image that the UNet processes; windows of equal size share a call
  GB        peak memory of the process, or of the GPU
Each row is generated in a new process. Rows are added to the JSON file of results as soon as they
are measured, and a row that is in the file is not measured again. `benchmarks/tables.py` makes the
table of docs/explanation/methods.md from the file. With `--images`, the first image of each row is
written to the folder, with a sheet of all images of the folder.
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

import torch
from diffusers import UNet2DConditionModel
from measure import SCENES, Images, Meters, load_judge, make_seeds, sample_scenes
from PIL import Image, ImageDraw

from synthgen.config import load_job
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion.sources import EMBEDDED
from synthgen.scenes.scene import Scene
from synthgen.verification import efficientnet
from synthgen.verification.centernet import CenterNet

RESULTS = Path(__file__).parent / "results" / "methods.json"
METHODS = {
    "paste": ["pipeline=paste", "pipeline.cutouts=heldout", "pipeline.grounds=heldout"],
    "mixture": ["pipeline=mixture-tiny"],
    "inpaint": ["pipeline=inpaint-tiny"],
    "layered": ["pipeline=layered-tiny"],
    "layered, mixed": ["pipeline=layered-tiny", "pipeline.variant=mixed"],
    "grounded": ["pipeline=grounded-tiny"],
    "regional_attention": ["pipeline=regional-attention-tiny"],
    "annotation_mask": ["pipeline=annotation-mask-tiny"],
    # The whole canvas at once takes 9 s a step.
    "annotation_tokens": ["pipeline=annotation-tokens-tiny", "pipeline.steps=3"],
}
CANVAS_SIDES = {30: 640, 100: 896}  # px, by the number of dogs
KEYS = ("method", "dogs", "scale", "changes")
FIGURES = ("hit rate", "variety", "count error", "colour", "seconds")
SHEET = 448  # side of an image on the sheet, px


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    counts = list(CANVAS_SIDES)
    parser.add_argument("--counts", type=int, nargs="+", default=counts, choices=counts)
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 1.25, 1.5, 2])
    parser.add_argument(
        "--boxes", type=int, default=500, help="minimum number of boxes of each row"
    )
    parser.add_argument("--changes", nargs="*", default=[], help="overrides key=value of the job")
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--images", type=Path, help="folder for images and their sheet")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.results.is_file():
        rows = json.loads(args.results.read_text())
    torch.set_num_threads(1)
    detector = CenterNet.from_pretrained(EMBEDDED / "centernet-tiny", dtype=torch.float32).eval()
    layout = list_layout_keys(100)
    meters = Meters(load_judge(args.judge), detector, efficientnet.load(), layout)
    for key in list_keys(args):
        if not is_measured(key, rows):
            rows.append({**key, **measure_row(key, args.boxes, meters, args.images)})
            args.results.parent.mkdir(parents=True, exist_ok=True)
            args.results.write_text(json.dumps(rows, indent=1) + "\n")
    if args.images is not None:
        make_sheet(args.images).save(args.images / "methods.jpg", quality=88)


def list_keys(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the keys of the requested rows.

    `paste` generates nothing, and `inpaint` enlarges each object by itself: scale 1 only.
    """
    keys = []
    for method in args.methods:
        scales = [1.0] if method in ("paste", "inpaint") else args.scales
        for dogs in args.counts:
            for scale in scales:
                key = {"method": method, "dogs": dogs, "scale": scale, "changes": args.changes}
                keys.append(key)
    return keys


def is_measured(key: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Return whether there is a row with a key."""
    return any({name: row[name] for name in KEYS} == key for row in rows)


def list_layout_keys(dogs: int) -> list[str]:
    """Return the keys of the layout with a number of dogs, as overrides of the job."""
    side = CANVAS_SIDES[dogs]
    objects = f"layout.objects={{dog: {dogs}}}"
    return [f"layout.canvas=[{side}, {side}]", objects, "layout.size=[56, 76]", "layout.gap=6"]


def measure_row(
    key: dict[str, Any], boxes: int, meters: Meters, folder: Path | None
) -> dict[str, Any]:
    """Generate the images of a row in a new process, and return their figures."""
    images = -(-boxes // key["dogs"])
    layout = list_layout_keys(key["dogs"])
    scenes = sample_scenes(key["dogs"], images, 11, layout)
    changes = [*layout, *key["changes"]]
    if key["method"] != "paste":
        changes.append(f"pipeline.scale={key['scale']}")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        generated, cost = pool.submit(generate, key["method"], scenes, changes).result()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{key['method']}, {key['dogs']}, {key['scale']:g}.png"
        Image.fromarray(generated[0]).save(folder / name)
    figures = meters.measure(generated, scenes, cost.pop("seconds"))
    columns = {name: figures[name] for name in FIGURES} | cost
    row: dict[str, Any] = {"boxes": images * key["dogs"]}
    for name, value in columns.items():
        row[name] = None if value is None else round(value, 4)
    return row


def generate(
    method: str, scenes: Sequence[Scene], changes: Sequence[str]
) -> tuple[Images, dict[str, float]]:
    """Generate scenes one by one, and return the images (H, W, 3) and the cost per image.

    Args:
        changes: overrides `key=value` of the job, which also describe the layouts.
    """
    torch.set_num_threads(1)
    gpu = torch.cuda.is_available()
    spec = load_job("100dogs", [*METHODS[method], *changes]).pipeline
    device = "cuda" if gpu and spec.uses_torch else "cpu"
    painter: Any = spec.load(SCENES, Numerics(device=device, dtype=spec.choose_dtype(device)))
    passes: list[int] = []
    unet = getattr(getattr(painter, "pipeline", None), "unet", None)
    if isinstance(unet, UNet2DConditionModel):
        unet.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    # The processor time of one thread does not count other processes.
    clock = time.perf_counter if gpu else time.process_time
    start = clock()
    images = []
    for scene, seed in zip(scenes, make_seeds(list(scenes), 11), strict=True):
        images.append(painter([scene], [seed])[0].image)
    count = len(scenes)
    seconds = (clock() - start) / count
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
    """Return a sheet of all images of a folder, four in a line."""
    files = sorted(folder.glob("*.png"))
    sheet = Image.new("RGB", (4 * SHEET, -(-len(files) // 4) * (SHEET + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, file in enumerate(files):
        x = number % 4 * SHEET
        y = number // 4 * (SHEET + 16)
        draw.text((x + 4, y + 2), file.stem, "black")
        image = Image.open(file).resize((SHEET, SHEET), Image.Resampling.LANCZOS)
        sheet.paste(image, (x, y + 16))
    return sheet


if __name__ == "__main__":
    main()
