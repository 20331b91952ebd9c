#!/usr/bin/env python3
"""Measure whether a checkpoint learns two new dogs one after the other, and keeps the known ones.

usage: benchmarks/dreambooth.py [--pictures 6] [--set key=value …] [--judge judge.py]
                                [--keep FOLDER] [--json]

The script fine-tunes the embedded checkpoint on eight cut-outs of <rex> (blue with yellow spots;
benchmarks/coats.py), and then the result on eight of <bud> (red with stripes). Before and after
each training it generates images of 320 x 320 px with eight boxes of 56-76 px, with the recipe
mixture-tiny. A linear classifier of EfficientNet-Lite0 features reads the crop of each box as rex,
bud or neither, or as one of the two. It is trained on pasted images of other poses in these coats,
of ordinary dogs, and of backgrounds without dogs. Its accuracy on the trained poses is printed
first.

rows: the embedded checkpoint; after <rex>; after <bud>; pasted images of the same boxes
columns, which are shares of boxes except for the last:
  rex, bud     boxes that are read as requested, in images with this class alone; the answer is
               rex or bud
  both         the same, in images with four boxes of each
  strict       the same, if "neither" is an answer, too; the classifier is trained on pasted dogs,
               from which generated ones differ a little
  neither      ordinary dogs that are read as neither
  hit rate     ordinary dogs that an independent detector finds, IoU >= 0.5; needs --judge: a file
               with a class Judge (benchmarks/checkpoint.py)
  rex hit, bud hit   new dogs that it finds
  minutes      processor time of the training
With --keep the images and trainings stay in the folder, and finished trainings are not repeated.
Needs `pip install 'synthgen-layouts[train]'`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coats import COATS, write_coats
from measure import (
    COLOURS,
    Images,
    crop_all_boxes,
    format_table,
    generate_images,
    load_judge,
    make_seeds,
    measure_hit_rate,
    save_images,
    train_linear,
)
from torch.nn import functional as F

from synthgen.assets import ASSETS
from synthgen.config import load_job, load_training
from synthgen.layouts.scatter import Spec as ScatterSpec
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.paste import CutOut, PastePainter
from synthgen.scenes.scene import Scene, SceneSpec, list_image_files
from synthgen.training.loop import train
from synthgen.training.vae.trainee import to_tensor
from synthgen.verification import efficientnet

REX = "<rex> dog"
BUD = "<bud> dog"
ORDINARY = "dog"
ANSWERS = (REX, BUD, ORDINARY)  # ORDINARY stands for neither
KINDS: dict[str, dict[str, int]] = {
    "rex": {REX: 8},
    "bud": {BUD: 8},
    "both": {REX: 4, BUD: 4},
    "ordinary": {ORDINARY: 8},
}
TRAINING_IMAGES = 8  # pasted images of each kind for the training of the classifier
TEST_IMAGES = 3  # pasted images of each kind for its accuracy


def sample_scenes(objects: dict[str, int], images: int, seed: int) -> list[Scene]:
    """Return scenes of objects on grass; the phrases of ordinary dogs name a colour."""
    spec = ScatterSpec(canvas=(320, 320), objects=objects, size=(56, 76), gap=8)
    phrases: str | tuple[str, ...] = "a {category}"
    if ORDINARY in objects:
        phrases = tuple(f"a {colour} {{category}}" for colour in COLOURS)
    scene_spec = SceneSpec(object=phrases, background="a field of grass")
    scenes = []
    for number in range(images):
        rng = np.random.default_rng((seed, number))
        layout = spec.sample(rng)
        scenes.append(scene_spec.draw(layout, rng))
    return scenes


def paste(coats: Path, split: str, scenes: list[Scene], seed: int) -> Images:
    """Return pasted images of scenes, with the cut-outs of a split and the new coats."""
    painter = PastePainter(ASSETS / "cutouts" / split, ASSETS / "grounds" / split)
    for coat in COATS:
        files = list_image_files(coats / split / coat)
        painter.cutouts[f"<{coat}> dog"] = [CutOut(file) for file in files]
    return generate_images(painter, scenes, make_seeds(scenes, seed))


class Reader:
    """A classifier that tells which of the answers a crop shows.

    Attributes:
        accuracy: the share of correct answers for pasted images of the trained poses.
    """

    def __init__(self, coats: Path) -> None:
        self.features = efficientnet.load()
        kinds = [*KINDS.values(), {}]
        features, answers = self.make_examples(coats, "heldout", TRAINING_IMAGES, 1, kinds)
        self.classifier = train_linear(features, answers, len(ANSWERS))
        kinds = list(KINDS.values())
        features, answers = self.make_examples(coats, "train", TEST_IMAGES, 2, kinds)
        self.accuracy = float((self.classifier(features).argmax(1) == answers).float().mean())

    def make_examples(
        self, coats: Path, split: str, images: int, seed: int, kinds: list[dict[str, int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (boxes, 1280) and answers (boxes,) of pasted images of all kinds.

        A kind without objects has crops of the background at the boxes of ordinary dogs.
        """
        features = []
        answers = []
        for objects in kinds:
            scenes = sample_scenes(objects or {ORDINARY: 8}, images, seed)
            pasted_scenes = scenes
            if not objects:
                pasted_scenes = [
                    Scene(scene.layout.select([]), scene.background) for scene in scenes
                ]
            pasted = paste(coats, split, pasted_scenes, seed)
            features.append(self.describe(pasted, scenes))
            answers.append(list_answers(scenes))
        return torch.cat(features), torch.cat(answers)

    @torch.no_grad()
    def describe(self, images: Images, scenes: list[Scene]) -> torch.Tensor:
        """Return normalised features (boxes, 1280) of a square crop of each box."""
        crops = crop_all_boxes(images, scenes)
        batches = []
        for start in range(0, len(crops), 32):
            pixels = to_tensor(np.stack(crops[start : start + 32]))
            features = self.features.extract_features(pixels).mean((2, 3))
            batches.append(F.normalize(features, dim=1))
        return torch.cat(batches)

    @torch.no_grad()
    def measure_accuracy(self, images: Images, scenes: list[Scene], answers: int) -> float:
        """Return the share of all boxes that are read as requested.

        Args:
            answers: the number of `ANSWERS` among which the classifier chooses.
        """
        scores = self.classifier(self.describe(images, scenes))[:, :answers]
        return float((scores.argmax(1) == list_answers(scenes)).float().mean())


def list_answers(scenes: Sequence[Scene]) -> torch.Tensor:
    """Return the correct answer (boxes,) for each box, as an index of `ANSWERS`."""
    answers = []
    for scene in scenes:
        answers += [ANSWERS.index(name) for name in scene.layout.categories]
    return torch.tensor(answers)


def train_coat(
    folder: Path, coats: Path, coat: str, init: str, overrides: list[str]
) -> tuple[str, float]:
    """Train one class, starting from `init`.

    Returns:
        the checkpoint, and the minutes of processor time.
    """
    images = str(coats / "train" / coat)
    concepts = [{"identifier": f"<{coat}>", "category": "dog", "images": images}]
    keys = [f"concepts={json.dumps(concepts)}", f"init={init}", f"output.path={folder}"]
    checkpoint = folder / "checkpoint"
    start = time.process_time()
    if not checkpoint.exists():
        if train(load_training("train-dreambooth", [*overrides, *keys])).interrupted:
            raise SystemExit(130)
        (folder / "minutes").write_text(f"{(time.process_time() - start) / 60:.2f}")
    return str(checkpoint), float((folder / "minutes").read_text())


def train_checkpoints(
    out: Path, coats: Path, overrides: list[str]
) -> Iterator[tuple[str, str, float | None]]:
    """Yield the name, the checkpoint and the minutes of each row."""
    yield "embedded", "synthgen-tiny", None
    rex, minutes = train_coat(out / "rex", coats, "rex", "synthgen-tiny", overrides)
    yield "after <rex>", rex, minutes
    bud, minutes = train_coat(out / "bud", coats, "bud", rex, overrides)
    yield "after <bud>", bud, minutes


def generate(model: str, scenes: list[Scene]) -> Images:
    """Return an image of each scene, generated by a checkpoint."""
    job = load_job("100dogs", [f"pipeline.model={model}"])
    painter = job.pipeline.load(
        job.scene, Numerics(threads=torch.get_num_threads(), dtype=job.pipeline.choose_dtype("cpu"))
    )
    images = []
    for scene, seed in zip(scenes, make_seeds(scenes, 5), strict=True):
        images += generate_images(painter, [scene], [seed])
    return images


def measure(
    reader: Reader, judge: Any, scenes: dict[str, list[Scene]], images: dict[str, Images]
) -> dict[str, float | None]:
    """Return the figures of a row; the scenes and the images are given by kind."""
    figures: dict[str, float | None] = {}
    for kind in ("rex", "bud", "both"):
        figures[kind] = reader.measure_accuracy(images[kind], scenes[kind], 2)
    figures["strict"] = reader.measure_accuracy(images["both"], scenes["both"], 3)
    figures["neither"] = reader.measure_accuracy(images["ordinary"], scenes["ordinary"], 3)
    for column, kind in (("hit rate", "ordinary"), ("rex hit", "rex"), ("bud hit", "bud")):
        figures[column] = None
        if judge:
            figures[column] = measure_hit_rate(judge, images[kind], scenes[kind])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=6, help="number of images of each kind")
    parser.add_argument(
        "--set", nargs="*", default=[], help="overrides of jobs/train-dreambooth.yaml"
    )
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = args.keep or Path(temporary)
        coats = out / "coats"
        write_coats(coats, 8)
        reader = Reader(coats)
        judge = load_judge(args.judge)
        scenes = {}
        for kind, objects in KINDS.items():
            scenes[kind] = sample_scenes(objects, args.pictures, 7)
        rows: dict[str, dict[str, float | None]] = {}
        for name, model, minutes in train_checkpoints(out, coats, args.set):
            prefix = name.replace(" ", "-").strip(">").replace("<", "")
            images = {}
            for kind, kind_scenes in scenes.items():
                images[kind] = generate(model, kind_scenes)
                save_images(args.keep, f"{prefix}-{kind}", images[kind])
            rows[name] = {**measure(reader, judge, scenes, images), "minutes": minutes}
        pasted = {}
        for kind, kind_scenes in scenes.items():
            pasted[kind] = paste(coats, "train", kind_scenes, 7)
        rows["pastes"] = {**measure(reader, judge, scenes, pasted), "minutes": None}
    if args.json:
        print(json.dumps({"classifier": reader.accuracy, "rows": rows}, indent=1))
    else:
        print(f"accuracy of the classifier on the trained poses: {reader.accuracy:.3f}\n")
        print(format_table(rows))


if __name__ == "__main__":
    main()
