"""A folder in which the documentation's commands run, with tiny versions of the files they name."""

import json
import shutil
from pathlib import Path
from zlib import crc32

from synthgen.config import load_job
from synthgen.engine.generation import run
from synthgen.pipelines.diffusion.sources import EMBEDDED
from tests.conftest import save_tiny_checkpoint
from tests.docs.commands import ROOT, TINY, find_blocks
from tests.formats.sources import make_image, write_coco, write_lines, write_voc, write_yolo
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
    """Fill an existing folder and return it.

    Files that a page defines itself, such as a job file, are written by `write_files`.
    """
    for name in ("gnome", "dog", "<rex> dog"):
        draw_cutouts(place / "my/cutouts" / name, (200, 80, 40))
    for name in ("rex", "bud"):
        draw_cutouts(place / "my" / name, (30, 60, 220))
    (place / "my/photos").mkdir()
    for k in range(4):
        make_image(k, (160, 140)).save(place / f"my/photos/{k}.jpg")
    checkpoint = save_tiny_checkpoint(place / TINY, halvings=3)  # 64 latents for an image of 64 px
    shutil.copytree(checkpoint, place / "my/checkpoint")
    for name in ("PekingU/rtdetr_r18vd", "out/train/detector/checkpoint"):
        shutil.copytree(EMBEDDED / "centernet-tiny", place / name)
    shutil.copytree(ROOT / "jobs", place / "jobs")
    write_sources(place)
    for name in ("my/real", "out/100dogs", "out/mine"):
        make_dataset(place / name)
    make_dataset(place / "out/varied", "scene.camera={jpeg: {}}")
    return place


def make_dataset(out: Path, *overrides: str) -> None:
    """Generate a dataset of four images, whose seed depends on the name of the folder."""
    seed = crc32(out.name.encode())
    run(load_job("100dogs", [*DOGS, f"output.path={out}", f"seed={seed}", *overrides]))


def write_sources(place: Path) -> None:
    """Write annotated images, a recording and files of other programs."""
    coco = write_coco(place / "coco")
    coco.rename(coco.with_name("instances_val2017.json"))
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
    """Write the files that a page shows: YAML blocks whose first line is a comment with a path."""
    for block in find_blocks(page, "yaml"):
        path = place / block.splitlines()[0].removeprefix("# ")
        if block.startswith("# ") and path.suffix == ".yaml":
            path.write_text(block)
