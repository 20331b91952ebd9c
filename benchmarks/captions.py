#!/usr/bin/env python3
"""A stand-in for the evaluation set of LRDiff (arXiv 2311.18435): 1,134 captions with boxes or masks, as JSON lines.

usage: benchmarks/captions.py captions.jsonl [--entries 1134] [--seed 0]
then:  synthgen evaluate jobs/captions.yaml [--clip CLIP] [--json]      generates a picture for each entry, and measures them
Each entry has 1 to 4 things that the embedded checkpoint knows, on one ground, at places that do not overlap; every other entry
has masks (ellipses) in place of boxes. The published set is of COCO's captions and is not free of charge; a file of that form
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
THINGS = {
    "dog": ("a brown dog", "a white dog", "a black dog"),
    "cat": ("a cat",),
    "ball": ("a red ball", "a blue ball"),
    "tree": ("a green tree",),
}
GROUNDS = ("a field of grass", "gravel")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--entries", type=int, default=1134)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    lines = [json.dumps(entry) for entry in entries(args.entries, args.seed)]
    args.output.write_text("\n".join(lines) + "\n")
    print(f"{args.output}: {len(lines)} captions")


def entries(count: int, seed: int) -> Iterator[dict[str, Any]]:
    for k in range(count):
        rng = np.random.default_rng((seed, k))
        names = [str(name) for name in rng.choice(list(THINGS), rng.integers(1, 5))]
        spec = ScatterSpec(
            canvas=(SIDE, SIDE), objects={n: names.count(n) for n in names}, size=(72, 160), gap=8
        )
        layout = spec.sample(rng)
        phrases = [str(rng.choice(THINGS[name])) for name in layout.categories]
        entry = {"width": SIDE, "height": SIDE, "caption": said(phrases, str(rng.choice(GROUNDS)))}
        entry |= {"categories": list(layout.categories), "phrases": phrases}
        yield {
            **entry,
            **(
                {"boxes": layout.boxes.round(2).tolist()}
                if k % 2
                else {"masks": [ellipse(b) for b in layout.boxes]}
            ),
        }


def said(phrases: list[str], ground: str) -> str:
    """ "a brown dog, a cat and a red ball on a field of grass" """
    first = ", ".join(phrases[:-1])
    return f"{first} and {phrases[-1]} on {ground}" if first else f"{phrases[-1]} on {ground}"


def ellipse(box: NDArray[np.float32]) -> dict[str, Any]:
    """Run-length encoding of the ellipse in a box xyxy."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    (cx, cy), (w, h) = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    inside = ((x - cx) / w) ** 2 + ((y - cy) / h) ** 2 <= 0.25
    found = coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": [SIDE, SIDE], "counts": found["counts"].decode("ascii")}


if __name__ == "__main__":
    main()
