#!/usr/bin/env python3
"""Write a substitute for the evaluation set of LRDiff (arXiv 2311.18435), as JSON lines.

usage: benchmarks/captions.py captions.jsonl [--entries 1134] [--seed 0]
then:  synthgen evaluate jobs/captions.yaml [--clip CLIP] [--json]
       generates an image for each entry and measures the images

The file has 1,134 captions. Each has 1 to 4 objects that the embedded checkpoint knows, on one
background, at places that do not overlap. Every second entry has masks (ellipses) instead of
boxes. The published set has captions of COCO and is not free of charge. A file of the same form
(caption, width, height, categories, and boxes or masks) is evaluated in the same way.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from synthgen.layouts.scatter import Spec as ScatterSpec

SIDE = 512
PHRASES = {
    "dog": ("a brown dog", "a white dog", "a black dog"),
    "cat": ("a cat",),
    "ball": ("a red ball", "a blue ball"),
    "tree": ("a green tree",),
}
BACKGROUNDS = ("a field of grass", "gravel")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--entries", type=int, default=1134)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    lines = [json.dumps(entry) for entry in make_entries(args.entries, args.seed)]
    args.output.write_text("\n".join(lines) + "\n")
    print(f"{args.output}: {len(lines)} captions")


def make_entries(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the entries of the file."""
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        names = [str(name) for name in rng.choice(list(PHRASES), rng.integers(1, 5))]
        objects = {name: names.count(name) for name in names}
        spec = ScatterSpec(canvas=(SIDE, SIDE), objects=objects, size=(72, 160), gap=8)
        layout = spec.sample(rng)
        phrases = [str(rng.choice(PHRASES[name])) for name in layout.categories]
        entry: dict[str, Any] = {"width": SIDE, "height": SIDE}
        entry["caption"] = make_caption(phrases, str(rng.choice(BACKGROUNDS)))
        entry["categories"] = list(layout.categories)
        entry["phrases"] = phrases
        if number % 2:
            entry["boxes"] = layout.boxes.round(2).tolist()
        else:
            entry["masks"] = [encode_ellipse(box) for box in layout.boxes]
        yield entry


def make_caption(phrases: list[str], background: str) -> str:
    """Return a caption such as "a brown dog, a cat and a red ball on a field of grass"."""
    if len(phrases) == 1:
        return f"{phrases[0]} on {background}"
    return f"{', '.join(phrases[:-1])} and {phrases[-1]} on {background}"


def encode_ellipse(box: NDArray[np.float32]) -> dict[str, Any]:
    """Return the run-length encoding of the ellipse in a box (xyxy, px)."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    cx, cy = (box[:2] + box[2:]) / 2
    w, h = box[2:] - box[:2]
    inside = ((x - cx) / w) ** 2 + ((y - cy) / h) ** 2 <= 0.25
    encoded = coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": [SIDE, SIDE], "counts": encoded["counts"].decode("ascii")}


if __name__ == "__main__":
    main()
