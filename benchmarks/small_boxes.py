#!/usr/bin/env python3
"""Measure methods on boxes that are much smaller than what a checkpoint generates well.

usage: benchmarks/small_boxes.py [--rows PREFIX …] [--boxes 500] [--judge judge.py]
                                 [--results FILE] [--images FOLDER]

With the embedded checkpoint, this stands for boxes of 70 px with Stable Diffusion 1.5: an image of
256 x 256 px has 25 dogs in boxes of 24 px, windows have 112 px, and the checkpoint generates dogs
of 45 to 90 px in them.
rows:
  paste               cut-outs, shrunk and pasted on backgrounds that the checkpoint generates in
                      windows of 112 px
  mixture             windows of 112 px
  inpaint, N steps    each object in an enlarged crop of 112 px
columns: boxes, hit rate and variety as in benchmarks/checkpoint.py, and the seconds of processor
time and the passes of the UNet (windows) per image.
Each row is added to the JSON file of results as soon as it is measured, and a row that is in the
file is not measured again. `benchmarks/tables.py` makes the table of
docs/reference/methods/inpaint.md. With `--images`, the first image of each row is written.
Needs `pip install 'synthgen-layouts[train]'`.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from measure import SCENES, Images, Meters, load_judge, make_seeds, sample_scenes
from methods import generate
from PIL import Image

from synthgen.layouts.base import Layout
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion.sources import EMBEDDED
from synthgen.pipelines.paste import Spec as PasteSpec
from synthgen.scenes.scene import Scene
from synthgen.verification import efficientnet
from synthgen.verification.centernet import CenterNet

RESULTS = Path(__file__).parent / "results" / "small_boxes.json"
DOGS = 25
SIDE = 256  # of the canvas, px
LAYOUT = [
    f"layout.canvas=[{SIDE}, {SIDE}]",
    f"layout.objects={{dog: {DOGS}}}",
    "layout.size=[24, 24.5]",
    "layout.gap=4",
]
WINDOW = "pipeline.window=112"
INPAINT = [WINDOW, "pipeline.background_window=112", "pipeline.guidance_interval=[0, 1]"]
ROWS: dict[str, tuple[str, list[str]]] = {
    "paste": ("paste", []),
    "mixture": ("mixture", [WINDOW, "pipeline.background_window=112", "pipeline.scale=1"]),
    "inpaint, 6 steps": ("inpaint", INPAINT),
    "inpaint, 20 steps": ("inpaint", [*INPAINT, "pipeline.steps=20"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", default=[""], help="the first letters of rows")
    parser.add_argument("--boxes", type=int, default=500)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--images", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.results.is_file():
        rows = json.loads(args.results.read_text())
    measured = {row["row"] for row in rows}
    torch.set_num_threads(1)
    detector = CenterNet.from_pretrained(EMBEDDED / "centernet-tiny", dtype=torch.float32).eval()
    meters = Meters(load_judge(args.judge), detector, efficientnet.load(), LAYOUT)
    scenes = sample_scenes(DOGS, -(-args.boxes // DOGS), 12, LAYOUT)
    for name, (method, changes) in ROWS.items():
        if name in measured or not name.startswith(tuple(args.rows)):
            continue
        if method == "paste":
            images, cost = paste(scenes)
        else:
            images, cost = generate(method, scenes, [*LAYOUT, *changes])
        if args.images is not None:
            args.images.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[0]).save(args.images / f"{name}.png")
        rows.append(summarise(name, images, scenes, meters, cost))
        args.results.write_text(json.dumps(rows, indent=1) + "\n")


def paste(scenes: Sequence[Scene]) -> tuple[Images, dict[str, float]]:
    """Paste dogs on backgrounds that the checkpoint generates; return images and no cost."""
    nothing = Layout(SIDE, SIDE, np.zeros((0, 4), np.float32), ())
    empty = [replace(scene, layout=nothing) for scene in scenes]
    backgrounds, _ = generate("inpaint", empty, [*LAYOUT, *INPAINT])
    images = []
    for background, scene, seed in zip(
        backgrounds, scenes, make_seeds(list(scenes), 12), strict=True
    ):
        with TemporaryDirectory() as folder:
            Image.fromarray(background).save(Path(folder) / "grass.png")
            spec = PasteSpec(cutouts="heldout", grounds=folder)
            images.append(spec.load(SCENES, Numerics())([scene], [seed])[0].image)
    return images, {}


def summarise(
    name: str,
    images: Images,
    scenes: Sequence[Scene],
    meters: Meters,
    cost: dict[str, float],
) -> dict[str, Any]:
    """Return the row of images."""
    figures = meters.measure(images, list(scenes), 0)
    row: dict[str, Any] = {"row": name, "boxes": DOGS * len(scenes)}
    columns = {
        "hit rate": figures["hit rate"],
        "variety": figures["variety"],
        "seconds": cost.get("seconds"),
        "passes": cost.get("passes"),
    }
    for column, value in columns.items():
        row[column] = None if value is None else round(value, 4)
    return row


if __name__ == "__main__":
    main()
