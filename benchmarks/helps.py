#!/usr/bin/env python3
"""Measure whether generated images help a detector of real images, with substitutes for real ones.

usage: benchmarks/helps.py OUT [--real 24] [--test 200] [--synthetic 160] [--steps 250]
                           [--ratios 0.5] [--seeds 3] [--json]

The script makes three datasets and runs `synthgen benchmark` on them. The "real" and the test
images are pasted scenes of the held-out cut-outs of dogs on the held-out backgrounds, on which
nothing in the package was trained. One half of the cut-outs is in the real images and the other
half in the test images, so that no pose is in both; the eight backgrounds are in both. The
synthetic images are dogs that synthgen-tiny inpaints into the training backgrounds. If
centernet-tiny finds an object elsewhere (IoU below 0.85), the detected box replaces the label, or
the box is flagged and kept. A second run resumes and skips what is finished.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from synthgen.assets import ASSETS
from synthgen.config import load_job
from synthgen.engine.generation import run

OBJECTS = [
    "a brown {category}",
    "a white {category}",
    "a black {category}",
    "a white and black {category}",
    "a white and brown {category}",
]
SCENES = [
    "layout={sampler: scatter, canvas: [256, 256], objects: {dog: [1, 6]}, size: [44, 88],"
    " gap: 8, spread: random}",
    f"scene.object={json.dumps(OBJECTS)}",
    'scene.background=["a field of grass", gravel, sand, snow, soil, concrete]',
    "output.image_format=png",
    "workers=0",
]
REAL = ["pipeline={method: paste, grounds: heldout}"]
SYNTHETIC = [
    "pipeline.background_window=256",
    "batch_size=4",
    f"scene.backgrounds={ASSETS / 'grounds' / 'train'}",
    "verify={verifier: detector, threshold: 0.3, iou: 0.85, unasked: null,"
    " on_failure: [tighten, flag]}",
]
DETECTOR = ["batch_size=4", "crop=160", "warmup=50", "output.every=125"]
DATA = ["data={side: 256, scenes: 160, fresh: 16}"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--real", type=int, default=24)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--synthetic", type=int, default=160)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ratios", nargs="+", default=["0.5"])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    out: Path = args.output
    cutouts = out / "cutouts"
    copy_cutouts(cutouts / "real", 0)
    copy_cutouts(cutouts / "test", 1)
    real = [*REAL, f"pipeline.cutouts={cutouts / 'real'}", "output.shard_size=6"]
    test = [*REAL, f"pipeline.cutouts={cutouts / 'test'}", "output.shard_size=20"]
    make_dataset(out, "real", 1, args.real, real)
    make_dataset(out, "test", 2, args.test, test)
    make_dataset(out, "synthetic", 10, args.synthetic, [*SYNTHETIC, "output.shard_size=20"])
    command = [sys.executable, "-m", "synthgen", "benchmark"]
    command += [f"--{name}={out / name}" for name in ("real", "synthetic", "test")]
    command += [*DATA, *DETECTOR, f"--steps={args.steps}", f"--seeds={args.seeds}"]
    if args.json:
        command.append("--json")
    command += ["-o", str(out / "bench"), "--ratios", *args.ratios]
    return subprocess.run(command, check=False).returncode


def copy_cutouts(folder: Path, half: int) -> None:
    """Copy every second held-out pose of each colour, starting with pose `half`, which is 0 or 1.

    The numbers of the poses of a colour are five apart.
    """
    target = folder / "dog"
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted((ASSETS / "cutouts" / "heldout" / "dog").glob("*.webp")):
        number = int(path.stem.split("_")[-1])
        if number // 5 % 2 == half:
            shutil.copy(path, target)


def make_dataset(out: Path, name: str, seed: int, images: int, overrides: list[str]) -> None:
    """Generate the missing images of a dataset."""
    values = {"name": name, "seed": seed, "images": images, "output.path": str(out / name)}
    keys = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    result = run(load_job("100dogs", [*SCENES, *keys, *overrides]))
    print(f"{name}: {result.made} of {images} images generated now", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
