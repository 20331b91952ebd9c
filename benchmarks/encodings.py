#!/usr/bin/env python3
"""Measure what the encoding of images costs: hit rate against bytes.

usage: benchmarks/encodings.py DATASET [--judge judge.py] [--results FILE]

DATASET holds images as PNG, such as `synthgen run 100dogs images=20 output.image_format=png` makes. Each
image is encoded and decoded anew in each way; the hit rate is that of benchmarks/methods.py.
`benchmarks/tables.py` makes the table of docs/reference/output.md from the results.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from measure import hit_rate, load_judge
from PIL import Image

from synthgen.config import OutputSpec
from synthgen.dataset.reader import open_dataset
from synthgen.engine.worker import encode_image
from synthgen.layouts.base import Layout
from synthgen.scenes.scene import Scene

RESULTS = Path(__file__).parent / "results" / "encodings.json"
WAYS: list[dict[str, Any]] = [
    {"image_format": "png"},
    {"image_format": "jpg", "quality": 90, "subsampling": "4:2:0"},
    {"image_format": "jpg", "quality": 92, "subsampling": "4:2:0"},
    {"image_format": "jpg", "quality": 95, "subsampling": "4:2:0"},
    {"image_format": "jpg", "quality": 90, "subsampling": "4:4:4"},
    {"image_format": "jpg", "quality": 92, "subsampling": "4:4:4"},
    {"image_format": "jpg", "quality": 95, "subsampling": "4:4:4"},
    {"image_format": "webp", "quality": 92},
    {"image_format": "webp", "quality": 95},
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = measure(args.dataset, load_judge(args.judge))
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(rows, indent=1) + "\n")


def measure(dataset: Path, judge: Any) -> list[dict[str, Any]]:
    """Encode the images of a dataset in each way, and measure what comes back."""
    pictures, scenes = [], []
    for image, target in open_dataset(dataset):
        pixels = image.permute(1, 2, 0).numpy()
        boxes = target["boxes"].numpy()
        layout = Layout(pixels.shape[1], pixels.shape[0], boxes, ("dog",) * len(boxes))
        pictures.append(pixels)
        scenes.append(Scene(layout, ""))
    rows = []
    for way in WAYS:
        encoded = [encode_image(pixels, OutputSpec(path="none", **way)) for pixels in pictures]
        decoded = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded]
        boxes_judged = sum(len(scene.layout) for scene in scenes)
        size = sum(len(data) for data in encoded) / len(encoded)
        rows.append(
            {
                **way,
                "boxes": boxes_judged,
                "bytes": round(size),
                "hit rate": hit_rate(judge, decoded, scenes),
            }
        )
    return rows


if __name__ == "__main__":
    main()
