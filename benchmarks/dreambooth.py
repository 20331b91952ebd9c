#!/usr/bin/env python3
"""Does a checkpoint learn new dogs from eight cut-outs each, one after the other, and keep what it knew?

usage: benchmarks/dreambooth.py [--pictures 6] [--set key=value …] [--judge judge.py] [--keep FOLDER] [--json]
Trains <rex> (blue with yellow spots; benchmarks/coats.py) on the embedded checkpoint, then <bud> (red with stripes) on what
came of that, and paints pictures of 320 x 320 px with eight boxes of 56-76 px by the recipe mixture-tiny before and after.
A linear classifier of EfficientNet-Lite0 features says rex, bud or neither of the crop round each box, or which of the two; it
learns from pastes of other poses in these coats, of ordinary dogs and of bare ground; its share of right answers on the trained
poses is printed first.
rows: the embedded checkpoint; after <rex>; after <bud> on top; held-out pastes of the same boxes
columns: shares of boxes
  rex, bud     of the two, read as asked, in pictures of that class alone
  both         of the two, read as asked, in pictures of four of each
  strict       the same, where "neither" is an answer too (its dogs are pastes, and painted ones are not quite like them)
  neither      of ordinary dogs that are read as neither
  hit rate     of ordinary dogs that an independent detector finds, IoU >= 0.5 (needs --judge: a file with a class Judge)
  rex hit, bud hit   the same of the new dogs
  minutes      of processor time that the training before took
With --keep the pictures and trainings stay there, and finished trainings are not repeated.
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
from measure import COLOURS, Pictures, hit_rate, load_judge, save, seeds, square_crops, table
from torch.nn import functional as F

from synthgen.assets import ASSETS
from synthgen.config import load_job, load_training
from synthgen.layouts.scatter import Spec as ScatterSpec
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.paste import CutOut, PastePainter
from synthgen.scenes.scene import Scene, SceneSpec, pictures
from synthgen.training.loop import train
from synthgen.training.vae.trainee import to_tensor
from synthgen.verification import efficientnet

REX, BUD, PLAIN = "<rex> dog", "<bud> dog", "dog"
ANSWERS = (REX, BUD, PLAIN)  # the last stands for neither
KINDS: dict[str, dict[str, int]] = {
    "rex": {REX: 8},
    "bud": {BUD: 8},
    "both": {REX: 4, BUD: 4},
    "ordinary": {PLAIN: 8},
}
LEARNT_ON, RATED_ON = 8, 3  # pasted pictures of each kind


def draw_scenes(objects: dict[str, int], images: int, seed: int) -> list[Scene]:
    """Scenes of these objects on grass; ordinary dogs are asked for by colour."""
    spec = ScatterSpec(canvas=(320, 320), objects=objects, size=(56, 76), gap=8)
    colours = tuple(f"a {c} {{category}}" for c in COLOURS) if PLAIN in objects else "a {category}"
    rngs = [np.random.default_rng((seed, k)) for k in range(images)]
    return [
        SceneSpec(object=colours, background="a field of grass").draw(spec.sample(rng), rng)
        for rng in rngs
    ]


def paste(coats: Path, split: str, scenes: list[Scene], seed: int) -> Pictures:
    painter = PastePainter(ASSETS / "cutouts" / split, ASSETS / "grounds" / split)
    own = {f"<{coat}> dog": pictures(coats / split / coat) for coat in COATS}
    painter.cutouts |= {name: [CutOut(file) for file in files] for name, files in own.items()}
    return [painting.image for painting in painter(scenes, seeds(scenes, seed))]


class Reader:
    """Says which of the answers a crop shows."""

    def __init__(self, coats: Path) -> None:
        self.features = efficientnet.load()
        f, asked = zip(
            *(
                self.pasted(coats, "heldout", LEARNT_ON, 1, objects)
                for objects in (*KINDS.values(), {})
            ),
            strict=True,
        )
        self.answers = self.learn(torch.cat(f), torch.cat(asked))
        f, asked = zip(
            *(self.pasted(coats, "train", RATED_ON, 2, objects) for objects in KINDS.values()),
            strict=True,
        )
        self.accuracy = float(
            (self.answers(torch.cat(f)).argmax(1) == torch.cat(asked)).float().mean()
        )

    def pasted(
        self, coats: Path, split: str, images: int, seed: int, objects: dict[str, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and answers of pastes; without objects: of bare ground where dogs could be."""
        scenes = draw_scenes(objects or {PLAIN: 8}, images, seed)
        shown = scenes if objects else [Scene(s.layout.select([]), s.background) for s in scenes]
        return self.describe(paste(coats, split, shown, seed), scenes), asked(scenes)

    @torch.no_grad()
    def describe(self, painted: Pictures, scenes: list[Scene]) -> torch.Tensor:
        """Features (boxes, 1280) of the square crops round the boxes."""
        crops = [
            c for p, s in zip(painted, scenes, strict=True) for c in square_crops(p, s, 0, 160)
        ]
        parts = [to_tensor(np.stack(crops[k : k + 32])) for k in range(0, len(crops), 32)]
        return torch.cat(
            [
                F.normalize(self.features.extract_features(part).mean((2, 3)), dim=1)
                for part in parts
            ]
        )

    def learn(self, x: torch.Tensor, y: torch.Tensor) -> torch.nn.Linear:
        torch.manual_seed(0)
        net = torch.nn.Linear(x.shape[1], len(ANSWERS))
        optimiser = torch.optim.AdamW(net.parameters(), 0.05, weight_decay=0.01)
        for _ in range(300):
            loss = F.cross_entropy(net(x), y)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        return net

    @torch.no_grad()
    def right(self, painted: Pictures, scenes: list[Scene], answers: int) -> float:
        """Share of the boxes (in all pictures) that are read as asked, if the first `answers` of ANSWERS may be given."""
        read = self.answers(self.describe(painted, scenes))[:, :answers].argmax(1)
        return float((read == asked(scenes)).float().mean())


def asked(scenes: Sequence[Scene]) -> torch.Tensor:
    return torch.tensor([ANSWERS.index(name) for s in scenes for name in s.layout.categories])


def learn(folder: Path, coats: Path, coat: str, init: str, changes: list[str]) -> tuple[str, float]:
    """Train one class on top of `init`; returns the checkpoint and the minutes of processor time."""
    concept = [
        {"identifier": f"<{coat}>", "category": "dog", "images": str(coats / "train" / coat)}
    ]
    own = [f"concepts={json.dumps(concept)}", f"init={init}", f"output.path={folder}"]
    began = time.process_time()
    if not (folder / "checkpoint").exists():
        if train(load_training("train-dreambooth", [*changes, *own])).interrupted:
            raise SystemExit(130)
        (folder / "minutes").write_text(f"{(time.process_time() - began) / 60:.2f}")
    return str(folder / "checkpoint"), float((folder / "minutes").read_text())


def stages(out: Path, coats: Path, changes: list[str]) -> Iterator[tuple[str, str, float | None]]:
    """Name, checkpoint and minutes of each state of the checkpoint."""
    yield "embedded", "synthgen-tiny", None
    rex, minutes = learn(out / "rex", coats, "rex", "synthgen-tiny", changes)
    yield "after <rex>", rex, minutes
    bud, minutes = learn(out / "bud", coats, "bud", rex, changes)
    yield "after <bud>", bud, minutes


def paint(model: str, scenes: list[Scene]) -> Pictures:
    job = load_job("100dogs", [f"pipeline.model={model}"])
    painter = job.pipeline.load(job.scene, Numerics(threads=torch.get_num_threads()))
    return [painter([s], [seed])[0].image for s, seed in zip(scenes, seeds(scenes, 5), strict=True)]


def rate(
    reader: Reader, judge: Any, scenes: dict[str, list[Scene]], painted: dict[str, Pictures]
) -> dict[str, float | None]:
    shares = {kind: reader.right(painted[kind], scenes[kind], 2) for kind in ("rex", "bud", "both")}
    shares |= {"strict": reader.right(painted["both"], scenes["both"], 3)}
    shares |= {"neither": reader.right(painted["ordinary"], scenes["ordinary"], 3)}
    hits = {
        kind: hit_rate(judge, painted[kind], own) if judge else None for kind, own in scenes.items()
    }
    return {**shares, "hit rate": hits["ordinary"], "rex hit": hits["rex"], "bud hit": hits["bud"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=6, help="of each kind")
    parser.add_argument(
        "--set", nargs="*", default=[], help="changes to jobs/train-dreambooth.yaml"
    )
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = args.keep or Path(temporary)
        write_coats(out / "coats", 8)
        reader, judge = Reader(out / "coats"), load_judge(args.judge)
        scenes = {kind: draw_scenes(objects, args.pictures, 7) for kind, objects in KINDS.items()}
        rows: dict[str, dict[str, float | None]] = {}
        for name, model, minutes in stages(out, out / "coats", args.set):
            painted = {kind: paint(model, own) for kind, own in scenes.items()}
            for kind, own in painted.items():
                save(args.keep, f"{name.replace(' ', '-').strip('>').replace('<', '')}-{kind}", own)
            rows[name] = {**rate(reader, judge, scenes, painted), "minutes": minutes}
        pasted = {kind: paste(out / "coats", "train", own, 7) for kind, own in scenes.items()}
        rows["pastes"] = {**rate(reader, judge, scenes, pasted), "minutes": None}
    if args.json:
        print(json.dumps({"classifier": reader.accuracy, "rows": rows}, indent=1))
    else:
        print(f"classifier on pastes of other poses: {reader.accuracy:.3f}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
