"""A folder in which the documentation's commands run: all that they name is there, and tiny."""

import json
import shutil
from pathlib import Path
from zlib import crc32

from synthgen.config import load_job
from synthgen.engine.driver import run
from synthgen.pipelines.diffusion.models import EMBEDDED
from tests.conftest import tiny_checkpoint
from tests.docs.commands import ROOT, TINY, blocks
from tests.formats.sources import picture, write_coco, write_lines, write_voc, write_yolo
from tests.pipelines.test_tiling import FOREST
from tests.training.test_dreambooth import draw_cutouts

DOGS = [
    "images=4",
    "workers=0",
    "pipeline=paste",
    "layout.canvas=[256, 256]",
    "layout.objects={dog: 2}",
    "output.shard_size=2",
]


def furnish(place: Path) -> Path:
    """Fill the (present) folder; what a page writes itself, such as a job file, is not here."""
    for name in ("gnome", "dog", "<rex> dog"):
        draw_cutouts(place / "my/cutouts" / name, (200, 80, 40))
    for name in ("rex", "bud"):
        draw_cutouts(place / "my" / name, (30, 60, 220))
    (place / "my/pictures").mkdir()
    for k in range(4):
        picture(k, (160, 140)).save(place / f"my/pictures/{k}.jpg")
    shutil.copytree(
        tiny_checkpoint(place / TINY, halvings=3), place / "my/checkpoint"
    )  # 64 latents of a picture of 64 px
    for name in ("PekingU/rtdetr_r18vd", "out/train/detector/checkpoint"):
        shutil.copytree(EMBEDDED / "centernet-tiny", place / name)
    shutil.copytree(ROOT / "jobs", place / "jobs")
    write_sources(place)
    for name in ("my/real", "out/100dogs", "out/mine"):
        make_dataset(place / name)
    make_dataset(place / "out/varied", "scene.camera={jpeg: {}}")
    return place


def make_dataset(out: Path, *overrides: str) -> None:
    """A dataset of four pictures, others than those of any other name."""
    run(
        load_job(
            "100dogs", [*DOGS, f"output.path={out}", f"seed={crc32(out.name.encode())}", *overrides]
        )
    )


def write_sources(place: Path) -> None:
    """Annotated pictures, recordings and files of other programs."""
    found = write_coco(place / "coco")
    found.rename(found.with_name("instances_val2017.json"))
    write_lines(place / "photographs")
    write_yolo(place / "yolo")
    names = (place / "yolo/data.yaml").read_text()
    (place / "yolo/data.yaml").write_text(names.replace("dog", "puppy").replace("cat", "fox"))
    write_voc(place / "VOCdevkit/VOC2012")
    write_voc(place / "bccd")
    shutil.copy(ROOT / "tests/speech/data/one-hundred-dogs.wav", place / "prompt.wav")
    (place / "linearForest.json").write_text(json.dumps(FOREST))
    row = {
        "caption": "a brown dog, gravel",
        "width": 128,
        "height": 128,
        "categories": ["dog"],
        "boxes": [[10, 10, 60, 70]],
    }
    (place / "captions.jsonl").write_text(json.dumps(row))


def write_files(page: Path, place: Path) -> None:
    """The files that a page shows: YAML whose first line is a comment with a path."""
    for block in blocks(page, "yaml"):
        path = place / block.splitlines()[0].removeprefix("# ")
        if block.startswith("# ") and path.suffix == ".yaml":
            path.write_text(block)
