#!/usr/bin/env python3
"""Measure every method at several scales: do the labels hold, and what does it cost?

usage: benchmarks/scales.py [--methods mixture …] [--counts 30 100] [--scales 1 1.25 1.5 2] [--boxes 500]
                            [--changes pipeline.steps=7] [--judge judge.py] [--results FILE] [--table]

A row is a method's recipe for the embedded checkpoint, the dogs of 56-76 px in each image of
896 x 896 px, and `pipeline.scale`. There are as many images as hold `--boxes` boxes. Columns are those
of benchmarks/methods.py. Rows are added to the JSON file of results as they are measured; a row that
is there is not measured again. `--table` prints the Markdown table of the file and measures nothing.
Needs `pip install 'synthgen-layouts[train]'`.
"""

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from measure import Meters, draw_scenes, load_judge
from methods import LAYOUT, METHODS, paint

from synthgen.diffusion.models import EMBEDDED
from synthgen.train.vae import Features
from synthgen.verify.centernet import CenterNet

RESULTS = Path(__file__).parent / "results" / "scales.json"
SCALED = [method for method in METHODS if method != "paste"]
COLUMNS = {"hit rate": ".2f", "variety": ".2f", "count error": ".3f", "colour": ".2f", "seconds": ".0f", "GB": ".2f"}
KEYS = ("method", "dogs", "scale", "changes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=SCALED, choices=SCALED)
    parser.add_argument("--counts", type=int, nargs="+", default=[30, 100])
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 1.25, 1.5, 2])
    parser.add_argument("--boxes", type=int, default=500, help="of each row, at least")
    parser.add_argument("--changes", nargs="*", default=[], help="further key=value of the job")
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(args.results.read_text()) if args.results.is_file() else []
    if args.table:
        print(format_table(rows))
        return
    torch.set_num_threads(1)
    detector = CenterNet.from_pretrained(EMBEDDED / "centernet-tiny", dtype=torch.float32).eval()
    meters = Meters(load_judge(args.judge), detector, Features(), LAYOUT)
    for method in args.methods:
        for dogs in args.counts:
            for scale in args.scales:
                key = {"method": method, "dogs": dogs, "scale": scale, "changes": args.changes}
                if not any(all(row[name] == key[name] for name in KEYS) for row in rows):
                    rows.append({**key, **measure_row(key, args.boxes, meters)})
                    args.results.write_text(json.dumps(rows, indent=1) + "\n")
    print(format_table(rows))


def measure_row(key: dict[str, Any], boxes: int, meters: Meters) -> dict[str, Any]:
    """Generate the images of a row in a process of its own, and measure them."""
    images = -(-boxes // key["dogs"])
    scenes = draw_scenes(key["dogs"], images, 11, LAYOUT)
    changes = [f"pipeline.scale={key['scale']}", *key["changes"]]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pictures, cost = pool.submit(paint, key["method"], scenes, changes).result()
    found = meters.measure(pictures, scenes, cost.pop("seconds"))
    chosen = {name: found[name] for name in ("hit rate", "variety", "count error", "colour", "seconds")}
    return {"boxes": images * key["dogs"], **chosen, **cost}


def format_table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table of the rows, methods and counts together."""
    lines = ["| method, dogs | scale | " + " | ".join(COLUMNS) + " |", "| --- |" + " --- |" * (1 + len(COLUMNS))]
    for row in sorted(rows, key=lambda row: (SCALED.index(row["method"]), row["dogs"], row["scale"], row["changes"])):
        name = ", ".join([row["method"], str(row["dogs"]), *row["changes"]])
        cells = []
        for column, style in COLUMNS.items():
            cells.append("not measured" if row[column] is None else format(row[column], style))
        lines.append(f"| {name} | {row['scale']:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
