#!/usr/bin/env python3
"""Measure the hit rate and the size of images for each encoding.

usage: benchmarks/encodings.py DATASET [--judge judge.py] [--results FILE]

DATASET has PNG images, for example of `synthgen run 100dogs images=20 output.image_format=png`.
Each image is encoded and decoded with each encoding. The hit rate is that of benchmarks/methods.py.
`benchmarks/tables.py` makes the table of docs/reference/output.md from the results.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from measure import load_judge, measure_hit_rate
from PIL import Image

from synthgen.config import OutputSpec
from synthgen.dataset.reader import open_dataset
from synthgen.engine.worker import encode_image
from synthgen.layouts.base import Layout
from synthgen.scenes.scene import Scene

RESULTS = Path(__file__).parent / "results" / "encodings.json"
ENCODINGS: list[dict[str, Any]] = [
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
    """Return a row of figures for each encoding of the images of a dataset."""
    images = []
    scenes = []
    for image, target in open_dataset(dataset):
        pixels = image.permute(1, 2, 0).numpy()
        boxes = target["boxes"].numpy()
        layout = Layout(pixels.shape[1], pixels.shape[0], boxes, ("dog",) * len(boxes))
        images.append(pixels)
        scenes.append(Scene(layout, ""))
    box_count = sum(len(scene.layout) for scene in scenes)
    rows = []
    for encoding in ENCODINGS:
        output = OutputSpec(path="none", **encoding)
        encoded = [encode_image(pixels, output) for pixels in images]
        decoded = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded]
        size = sum(len(data) for data in encoded) / len(encoded)
        figures = {
            "boxes": box_count,
            "bytes": round(size),
            "hit rate": measure_hit_rate(judge, decoded, scenes),
        }
        rows.append({**encoding, **figures})
    return rows


if __name__ == "__main__":
    main()
