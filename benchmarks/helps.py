#!/usr/bin/env python3
"""Does what synthgen paints help a detector of real pictures? `synthgen benchmark` on pictures that stand in for real ones.

usage: benchmarks/helps.py OUT [--real 24] [--test 200] [--synthetic 160] [--steps 250] [--ratios 0.5] [--seeds 3] [--json]

"Real": scenes pasted of the held-out cut-outs of dogs on the held-out grounds, which nothing that ships was trained on. Half of
the cut-outs are in the pictures that are trained on, the other half in the test pictures: no pose is in both. The eight grounds
are in both. Synthetic: dogs that synthgen-tiny paints into the training grounds; a box that centernet-tiny finds elsewhere (IoU
under 0.85) becomes what it finds, or is flagged and kept. What is done is not done again.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from synthgen.assets import ASSETS
from synthgen.config import load_job
from synthgen.engine.driver import run

SCENES = [
    "layout={sampler: scatter, canvas: [256, 256], objects: {dog: [1, 6]}, size: [44, 88], gap: 8, spread: random}",
    'scene.object=["a brown {category}", "a white {category}", "a black {category}", "a white and black {category}", '
    '"a white and brown {category}"]',
    'scene.background=["a field of grass", gravel, sand, snow, soil, concrete]',
    "output.image_format=png",
    "workers=0",
]
REAL = ["pipeline={method: paste, grounds: heldout}"]
SYNTHETIC = [
    "pipeline.background_window=256",
    "batch_size=4",
    f"scene.backgrounds={ASSETS / 'grounds' / 'train'}",
    "verify={verifier: detector, threshold: 0.3, iou: 0.85, unasked: null, on_failure: [tighten, flag]}",
]
DETECTOR = ["batch_size=4", "crop=160", "warmup=50", "output.every=125"]
DATA = ["data={side: 256, scenes: 160, fresh: 16}"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    for name, default in (
        ("real", 24),
        ("test", 200),
        ("synthetic", 160),
        ("steps", 250),
        ("seeds", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ratios", nargs="+", default=["0.5"])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for part in ("real", "test"):
        split_cutouts(args.output / "cutouts", part)
    make(
        args.output,
        "real",
        1,
        args.real,
        [*REAL, f"pipeline.cutouts={args.output / 'cutouts' / 'real'}", "output.shard_size=6"],
    )
    make(
        args.output,
        "test",
        2,
        args.test,
        [*REAL, f"pipeline.cutouts={args.output / 'cutouts' / 'test'}", "output.shard_size=20"],
    )
    make(args.output, "synthetic", 10, args.synthetic, [*SYNTHETIC, "output.shard_size=20"])
    where = [f"--{name}={args.output / name}" for name in ("real", "synthetic", "test")]
    numbers = [
        f"--steps={args.steps}",
        f"--seeds={args.seeds}",
        *(["--json"] if args.json else []),
        "-o",
        str(args.output / "bench"),
    ]
    command = ["benchmark", *where, *DATA, *DETECTOR, *numbers, "--ratios", *args.ratios]
    return subprocess.run([sys.executable, "-m", "synthgen", *command], check=False).returncode


def split_cutouts(folder: Path, part: str) -> None:
    """Every other held-out pose: their numbers go up by five within a colour."""
    (folder / part / "dog").mkdir(parents=True, exist_ok=True)
    for path in sorted((ASSETS / "cutouts" / "heldout" / "dog").glob("*.webp")):
        if int(path.stem.split("_")[-1]) // 5 % 2 == ("real", "test").index(part):
            shutil.copy(path, folder / part / "dog")


def make(out: Path, name: str, seed: int, images: int, overrides: list[str]) -> None:
    told = {"name": name, "seed": seed, "images": images, "output.path": str(out / name)}
    job = load_job(
        "100dogs",
        [*SCENES, *(f"{key}={json.dumps(value)}" for key, value in told.items()), *overrides],
    )
    made = run(job)
    print(f"{name}: {made.made} pictures made now, {images} there", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
