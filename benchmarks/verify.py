#!/usr/bin/env python3
"""Does it help to look at every box, and to paint again what does not hold?

usage: benchmarks/verify.py [--images 20] [--threshold 0.3] [--repairs 3] [--keep FOLDER] [--judge judge.py] [--json]
rows, on the pictures of jobs/100dogs.yaml:
  painted    as they come out
  repaired   boxes that centernet-tiny or a classifier does not accept are painted again, and the better of both is kept
  random     as many windows of the same pictures, drawn at random, are painted again: what chance does
columns: hit rate, variety, count error and colour as in benchmarks/checkpoint.py; the judge of the hit rate has no part in the
verifying. Windows that were painted again, and seconds, an image: of one core, or of the GPU.
Needs `pip install 'synthgen-layouts[train]'`.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Meters, Pictures, load_judge, save, table
from numpy.typing import NDArray

from synthgen.config import Job, load_job
from synthgen.engine.worker import draw_scene
from synthgen.pipelines.base import Numerics, Painting
from synthgen.pipelines.diffusion.models import EMBEDDED
from synthgen.randomness import Stream, child_sequence, seed_sequence
from synthgen.scenes.scene import Scene
from synthgen.verification import efficientnet
from synthgen.verification.centernet import CenterNet
from synthgen.verification.repair import Inspection

ROWS = ("painted", "repaired", "random")
COLUMNS = ("hit rate", "variety", "count error", "colour", "seconds")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
clock = (
    time.perf_counter if torch.cuda.is_available() else time.process_time
)  # one thread: what else runs does not count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--threshold", type=float, default=0.3, help="of the classifier")
    parser.add_argument("--repairs", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder for the pictures")
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    members = f"[detector, {{verifier: classifier, threshold: {args.threshold}}}]"
    verify = f"verify={{verifier: panel, of: {members}, max_repairs: {args.repairs}}}"
    job = load_job("100dogs", [verify, f"images={args.images}"])
    rows = measure(job, args.keep, args.judge)
    print(json.dumps(rows, indent=1) if args.json else table(rows))


def measure(job: Job, keep: Path | None, judge: Path | None) -> dict[str, dict[str, Any]]:
    assert job.verify is not None
    painter = Counting(job.pipeline.load(job.scene, Numerics(1, job.chunk, 1, DEVICE)))
    inspection = Inspection(job.verify, job.verify.load(DEVICE), painter)
    scenes = [draw_scene(job, i) for i in range(job.images)]
    made = [paint(job, painter, inspection, i, scene, keep) for i, scene in enumerate(scenes)]
    detector = CenterNet.from_pretrained(EMBEDDED / "centernet-tiny", dtype=torch.float32).eval()
    meters, rows = Meters(load_judge(judge), detector, efficientnet.load()), {}
    for k, name in enumerate(ROWS):
        found = meters.measure(
            [pictures[k] for pictures, _, _ in made],
            scenes,
            float(np.mean([took[k] for _, took, _ in made])),
        )
        windows = float(np.mean([count for _, _, count in made])) if k else 0.0
        rows[name] = {**{column: found[column] for column in COLUMNS}, "windows": windows}
    return rows


class Counting:
    """A painter that notes how many windows it is asked to paint again, call by call."""

    def __init__(self, painter: Any) -> None:
        self.painter = painter
        self.counts: list[int] = []

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        found: list[Painting] = self.painter(scenes, seeds)
        return found

    def repaint(
        self,
        images: Sequence[NDArray[np.uint8]],
        scenes: Sequence[Scene],
        seeds: Sequence[np.random.SeedSequence],
    ) -> list[NDArray[np.uint8]]:
        self.counts += [len(scene.layout) for scene in scenes]
        found: list[NDArray[np.uint8]] = self.painter.repaint(images, scenes, seeds)
        return found


def paint(
    job: Job, painter: Counting, inspection: Inspection, i: int, scene: Scene, keep: Path | None
) -> tuple[Pictures, list[float], int]:
    """The picture of each row, its seconds, and how many windows were painted again."""
    painter.counts = []

    def seeds(k: int, number: int) -> np.random.SeedSequence:
        return child_sequence(seed_sequence(job.seed, i, Stream.REPAIR), number)

    began = clock()
    (painting,) = painter([scene], [seed_sequence(job.seed, i, Stream.NOISE)])
    painted = clock()
    (checked,) = inspection([scene], [painting], seeds)
    repaired, counts, rng = clock(), list(painter.counts), np.random.default_rng((job.seed, i))
    drawn = painting.image
    for number, count in enumerate(counts, 1):
        boxes = rng.choice(len(scene.layout), min(count, len(scene.layout)), replace=False)
        part = replace(scene, layout=scene.layout.select(np.sort(boxes).tolist()))
        (drawn,) = painter.repaint([drawn], [part], [seeds(0, number)])
    seconds = [painted - began, repaired - began, painted - began + clock() - repaired]
    pictures = [painting.image, checked.painting.image, drawn]
    for name, picture in zip(ROWS, pictures, strict=True):
        save(keep, f"{name}-{i}", [picture])
    return pictures, seconds, sum(counts)


if __name__ == "__main__":
    main()
