#!/usr/bin/env python3
"""Measure whether it helps to verify every box and to repair the failed ones.

usage: benchmarks/verify.py [--images 20] [--threshold 0.3] [--repairs 3] [--keep FOLDER]
                            [--judge judge.py] [--json]
rows, on the images of jobs/100dogs.yaml:
  painted    the images as generated
  repaired   boxes that centernet-tiny or a classifier rejects are generated again, and the better
             result is kept
  random     the same number of randomly chosen boxes is generated again: the result of chance
columns: hit rate, variety, count error and colour as in benchmarks/checkpoint.py; the judge of the
hit rate is not one of the verifiers. Windows that are generated again, and seconds, are per image;
seconds are those of one core or of the GPU.
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
from measure import Images, Meters, format_table, load_judge, save_images
from numpy.typing import NDArray

from synthgen.config import Job, load_job
from synthgen.engine.worker import sample_scene
from synthgen.pipelines.base import Numerics, Painting
from synthgen.pipelines.diffusion.sources import EMBEDDED
from synthgen.randomness import Stream, seed_sequence, spawn_sequence
from synthgen.scenes.scene import Scene
from synthgen.verification import efficientnet
from synthgen.verification.centernet import CenterNet
from synthgen.verification.repair import Inspection

ROWS = ("painted", "repaired", "random")
COLUMNS = ("hit rate", "variety", "count error", "colour", "seconds")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The processor time of one thread does not count other processes.
clock = time.perf_counter if torch.cuda.is_available() else time.process_time


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--threshold", type=float, default=0.3, help="threshold of the classifier")
    parser.add_argument("--repairs", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder for the images")
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    members = f"[detector, {{verifier: classifier, threshold: {args.threshold}}}]"
    verify = f"verify={{verifier: panel, of: {members}, max_repairs: {args.repairs}}}"
    job = load_job("100dogs", [verify, f"images={args.images}"])
    rows = measure(job, args.keep, args.judge)
    print(json.dumps(rows, indent=1) if args.json else format_table(rows))


def measure(job: Job, keep: Path | None, judge: Path | None) -> dict[str, dict[str, Any]]:
    """Generate the images of a job, and return the figures of each row."""
    assert job.verify is not None
    painter = CountingPainter(
        job.pipeline.load(
            job.scene, Numerics(1, job.first_chunk, 1, DEVICE, job.pipeline.choose_dtype(DEVICE))
        )
    )
    inspection = Inspection(job.verify, job.verify.load(DEVICE), painter)
    scenes = [sample_scene(job, index) for index in range(job.images)]
    images: dict[str, Images] = {name: [] for name in ROWS}
    seconds: dict[str, list[float]] = {name: [] for name in ROWS}
    windows = []
    for index, scene in enumerate(scenes):
        results = generate(job, painter, inspection, index, scene)
        windows.append(sum(painter.windows))
        for name, (image, elapsed) in results.items():
            images[name].append(image)
            seconds[name].append(elapsed)
            save_images(keep, f"{name}-{index}", [image])
    detector = CenterNet.from_pretrained(EMBEDDED / "centernet-tiny", dtype=torch.float32).eval()
    meters = Meters(load_judge(judge), detector, efficientnet.load())
    rows: dict[str, dict[str, Any]] = {}
    for name in ROWS:
        figures = meters.measure(images[name], scenes, float(np.mean(seconds[name])))
        rows[name] = {column: figures[column] for column in COLUMNS}
        rows[name]["windows"] = 0.0 if name == "painted" else float(np.mean(windows))
    return rows


class CountingPainter:
    """A painter that records the number of windows of each repair.

    Attributes:
        windows: the number of windows of each call of `repaint`.
    """

    def __init__(self, painter: Any) -> None:
        self.painter = painter
        self.windows: list[int] = []

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        paintings: list[Painting] = self.painter(scenes, seeds)
        return paintings

    def inpaint_boxes(
        self,
        images: Sequence[NDArray[np.uint8]],
        scenes: Sequence[Scene],
        seeds: Sequence[np.random.SeedSequence],
    ) -> list[NDArray[np.uint8]]:
        self.windows += [len(scene.layout) for scene in scenes]
        repaired: list[NDArray[np.uint8]] = self.painter.inpaint_boxes(images, scenes, seeds)
        return repaired


def generate(
    job: Job, painter: CountingPainter, inspection: Inspection, index: int, scene: Scene
) -> dict[str, tuple[NDArray[np.uint8], float]]:
    """Return the image and the seconds of each row.

    Afterwards `painter.windows` has the number of windows of each repair.
    """
    painter.windows = []

    def make_seed(k: int, number: int) -> np.random.SeedSequence:
        return spawn_sequence(seed_sequence(job.seed, index, Stream.REPAIR), number)

    start = clock()
    (painting,) = painter([scene], [seed_sequence(job.seed, index, Stream.NOISE)])
    generated = clock()
    (checked,) = inspection([scene], [painting], make_seed)
    repaired = clock()
    windows = list(painter.windows)
    rng = np.random.default_rng((job.seed, index))
    image = painting.image
    for number, count in enumerate(windows, 1):
        boxes = rng.choice(len(scene.layout), min(count, len(scene.layout)), replace=False)
        selected = replace(scene, layout=scene.layout.select(np.sort(boxes).tolist()))
        (image,) = painter.inpaint_boxes([image], [selected], [make_seed(0, number)])
    end = clock()
    painter.windows = windows
    return {
        "painted": (painting.image, generated - start),
        "repaired": (checked.painting.image, repaired - start),
        "random": (image, generated - start + end - repaired),
    }


if __name__ == "__main__":
    main()
