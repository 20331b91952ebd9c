#!/usr/bin/env python3
"""The whole loop: generate, fine-tune on it, generate again with what was learnt, train a detector on that, and measure.

usage: benchmarks/loop.py OUT [--images 40] [--method tokens] [--init synthgen-tiny] [--steps 1600] [--detector-steps 600]
                          [--json]
  1. OUT/first     scenes of dogs, pasted
  2. OUT/tuned     a checkpoint learns on these shards to read boxes (`task: annotation_tokens` or `annotation_mask`); --init: a
                   folder of one that has learnt it elsewhere and goes on here
  3. OUT/second    the same layouts, painted by the tuned checkpoint
  4. OUT/detector  a detector from scratch on the shards of 3
  5. OUT/heldout   pasted scenes of other dogs on other grounds, never trained on
table: how well each dataset's labels hold in the eyes of the embedded detector, and what the new one finds on OUT/heldout.
Goes on where it was stopped. Needs `pip install 'synthgen-layouts[train]'`.
"""

import argparse
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from measure import table

from synthgen.cli.main import main as synthgen

LAYOUT = [
    "layout.canvas=[224, 224]",
    "layout.objects={dog: 5}",
    "layout.size=[56, 76]",
    "layout.gap=4",
    "output.shard_size=20",
]
GUIDED = ["pipeline.tile=112", "pipeline.guidance_scale=3.5", "pipeline.steps=12"]
TOLD = {
    "tokens": ["pipeline=annotation-tokens-tiny", "pipeline.overlap=0.05", *GUIDED],
    "mask": ["pipeline=annotation-mask-tiny", *GUIDED],
}
COLUMNS = ("images", "boxes", "iou", "ap50", "ap", "held", "count_error")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--method", choices=list(TOLD), default="tokens")
    parser.add_argument("--init", default="synthgen-tiny")
    parser.add_argument("--steps", type=int, default=1600, help="of the fine-tuning")
    parser.add_argument("--detector-steps", type=int, default=600)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    out, pasted = args.out, "pipeline=paste"
    generate(out / "first", args.images, [pasted])
    changes = [shards(out / "first", args.images), f"init={args.init}"]
    train(f"train-annotation-{args.method}", out / "tuned", args.steps, changes)
    generate(
        out / "second",
        args.images,
        [*TOLD[args.method], f"pipeline.model={out / 'tuned' / 'checkpoint'}"],
    )
    changes = [shards(out / "second", args.images), "crop=192", "categories=[dog]"]
    train("train-detector", out / "detector", args.detector_steps, changes)
    generate(
        out / "heldout",
        args.images,
        [pasted, "pipeline.cutouts=heldout", "pipeline.grounds=heldout", "seed=1"],
    )
    rows = {name: evaluated(out / name) for name in ("first", "second", "heldout")}
    rows["heldout, detector of second"] = evaluated(
        out / "heldout", ["--detector", str(out / "detector" / "checkpoint")]
    )
    print(json.dumps(rows, indent=1) if args.json else table(rows))


def generate(path: Path, images: int, changes: list[str]) -> None:
    command(["run", "100dogs", f"images={images}", f"output.path={path}", *LAYOUT, *changes])


def shards(path: Path, images: int) -> str:
    return f"data={{shards: {path}, side: 224, scenes: {images}}}"


def train(job: str, path: Path, steps: int, changes: list[str]) -> None:
    command(
        ["train", job, f"steps={steps}", f"output.path={path}", f"output.every={steps}", *changes]
    )


def evaluated(path: Path, more: list[str] | None = None) -> dict[str, Any]:
    found = command(["evaluate", str(path), *(more or [])])
    return {column: found[column] for column in COLUMNS}


def command(arguments: list[str]) -> dict[str, Any]:
    """What a command says as JSON; ends the script if it fails."""
    said = io.StringIO()
    with redirect_stdout(said):
        status = synthgen([*arguments, "--json"])
    if status:
        raise SystemExit(f"synthgen {' '.join(arguments)}: exit status {status}: {said.getvalue()}")
    data: dict[str, Any] = json.loads(said.getvalue())
    return data


if __name__ == "__main__":
    main()
