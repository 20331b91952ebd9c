#!/usr/bin/env python3
"""Run many small commands with an older commit and with this tree, and compare all that they write.

usage: benchmarks/same.py [--old COMMIT] [--only PREFIX …] [--keep FOLDER] [--json]

Every method, sampler, verifier, format, `repair`, `merge`, `finalize` and training task runs once with each
of the two, in a folder of its own, on the same inputs. Then every file is compared byte for byte, training by
its figures and weights. Half-made datasets of the older commit are finished by this tree, and must become what
the older commit makes. The imports that the older commit's documentation shows, and its console scripts, must
work here. Differences are listed, and the exit status is 1 if there are any.

  --old COMMIT     what to compare with (default: the commit in benchmarks/results/same.json)
  --only PREFIX    the steps whose names begin so, and no others; a step may need earlier ones
  --keep FOLDER    keep what was written there; what the older commit wrote is then not written again
"""

import argparse
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import traceback
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
BASELINE = Path(__file__).parent / "results" / "same.json"

SMALL = ["workers=0", "batch_size=2", "output.shard_size=2", "layout.canvas=[128, 128]"]
DOGS = [*SMALL, "layout.objects={dog: 2}", "layout.size=[28, 40]", "images=4"]
TWO = [
    *SMALL,
    "layout.objects={dog: 2}",
    "layout.size=[40, 56]",
    "images=2",
    "output.shard_size=1",
    "pipeline.steps=2",
]
NO_BOXES = [*SMALL, "layout.objects={}", "images=2", "pipeline.steps=2"]
EXTENT = "row_init: 0, row_end: 128, col_init: 0, col_end: 128"
REGION = f"{{{EXTENT}, prompt: a field of grass, guidance_scale: 1, mask_type: gaussian}}"

METHODS = {
    "paste": [*DOGS, "pipeline=paste"],
    "paste-png": [*DOGS, "pipeline=paste", "output.image_format=png"],
    "paste-webp": [*DOGS, "pipeline=paste", "output.image_format=webp", "output.quality=70"],
    "camera": [
        *DOGS,
        "pipeline=paste",
        "scene.camera={gaussian_blur: {probability: 1}, jpeg: {probability: 1}}",
    ],
    "backgrounds": [*DOGS, "pipeline=paste", "scene.backgrounds=images"],
    "mixture": [*TWO, "pipeline=mixture-tiny"],
    "mixture-scaled": [*TWO, "pipeline=mixture-tiny", "pipeline.scale=1.25"],
    "mixture-into-images": [*TWO, "pipeline=mixture-tiny", "scene.backgrounds=images"],
    "layered": [*TWO, "pipeline=layered-tiny"],
    "layered-mixed": [*TWO, "pipeline=layered-tiny", "pipeline.variant=mixed"],
    "regional_attention": [*TWO, "pipeline=regional-attention-tiny"],
    "grounded": [*TWO, "pipeline=grounded-tiny"],
    "annotation_mask": [*TWO, "pipeline=annotation-mask-tiny"],
    "annotation_tokens": [*TWO, "pipeline=annotation-tokens-tiny"],
    "tiling": [
        *NO_BOXES,
        "pipeline=tiling-tiny",
        "pipeline.prompt=[[a field of grass, sand]]",
        "layout.canvas=[384, 256]",
    ],
    "canvas": [*NO_BOXES, "pipeline=canvas-tiny", f"pipeline.regions=[{REGION}]"],
}
PLACED = [*SMALL, "pipeline=paste", "images=4"]
MIXED_OBJECTS = "layout.objects={dog: 2, cat: {share: 1}}"
SAMPLERS = {
    "scatter": [
        *PLACED,
        "layout=mixed",
        MIXED_OBJECTS,
        "layout.total=[3, 4]",
        "layout.size=[16, 28]",
    ],
    "crowd": [*PLACED, "layout=crowd", "layout.objects={dog: 4}", "layout.size=[16, 28]"],
    "grid": [*PLACED, "layout=grid", "layout.objects={dog: 4}", "layout.size=[16, 28]"],
    "pack": [*PLACED, "layout=pack", "layout.objects={dog: 4}"],
    "perspective": [
        *PLACED,
        "layout=perspective",
        "layout.objects={dog: 2}",
        "layout.canvas=[256, 192]",
    ],
    "coco": [
        *PLACED,
        "layout={sampler: coco, source: export/coco/annotations/instances_train.json, canvas: [128, 128]}",
    ],
    "file": [*PLACED, "layout={sampler: file, source: layouts.jsonl, canvas: [128, 128]}"],
    "fit": [*PLACED, "layout={sampler: fit, model: fitted.json, canvas: [128, 128]}"],
}
VERIFIERS = {
    "detector": [
        "verify={verifier: detector, model: centernet-tiny, on_failure: [repair, tighten, redo, flag]}"
    ],
    "classifier": ["verify={verifier: classifier, on_failure: [redo, flag]}"],
    "panel": [
        "verify={verifier: panel, of: [{verifier: detector, model: centernet-tiny}, {verifier: classifier}]}"
    ],
}
TRAINED = [
    "steps=20",
    "batch_size=2",
    "warmup=2",
    "data.scenes=2",
    "data.fresh=0",
    "data.side=128",
    "data.sizes=[24, 40]",
]
TASKS = {
    "train-vae": ["channels=[8, 16, 16]", "crop=32", "perceptual=0"],
    "train-tiny": ["init=null", "vae=synthgen-tiny", "channels=[16, 32]"],
    "train-detector": ["init=null", "crop=64"],
    "train-dreambooth": [
        "prior_images=1",
        "prior_steps=2",
        "concepts=[{identifier: <rex>, category: dog, images: images}]",
    ],
    "train-grounded": ["windows=[64, 64]"],
    "train-annotation-mask": ["windows=[64, 64]"],
    "train-annotation-tokens": ["windows=[64, 64]", "rehearse=4"],
}
HALF = (
    "paste",
    "mixture",
    "backgrounds",
)  # datasets that are also finished from what the older commit left half made
IMPORTS = {
    "coco": ["export/coco/annotations/instances_train.json"],
    "yolo": ["export/yolo", "--split", "all"],
    "voc": ["export/voc"],
    "jsonl": ["lines.jsonl"],
    "labelme": ["labelme"],
}
# What tells the time, a process or a place: left out of the comparison, or cut out of the text.
PASSING = re.compile(
    r"(^|/)(log\.jsonl|report\.html|state\.pt|events\.out\.[^/]*|\.export/.*|loss\.png|time\.json)$"
)
TIMES = re.compile(rb'"(seconds|attempts|created|host|pid)": ?("[^"]*"|[\d.e-]+),?')


def list_steps() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the command line of each step, in an order in which each finds what it needs."""
    for name, overrides in METHODS.items():
        yield (
            f"method {name}",
            ["run", "100dogs", f"output.path=run/{name}", f"name={name}", *overrides],
        )
    yield "ray", ["run", "100dogs", "output.path=run/ray", *METHODS["paste"], "workers=2"]
    for form in ("coco", "yolo", "hf", "voc"):
        yield (
            f"export {form}",
            ["export", "run/paste", f"export/{form}", "--to", form, "--val", "0.25"],
        )
    for name, arguments in IMPORTS.items():
        yield f"import {name}", ["import", *arguments, f"import/{name}", "--shard-size", "2"]
    yield "fit", ["fit", "run/paste", "-o", "fitted.json"]
    for name, overrides in SAMPLERS.items():
        yield f"sampler {name}", ["run", "100dogs", f"output.path=sampled/{name}", *overrides]
    for name, overrides in VERIFIERS.items():
        arguments = [f"output.path=verified/{name}", *TWO, "pipeline=mixture-tiny", *overrides]
        yield f"verifier {name}", ["run", "100dogs", *arguments]
    yield (
        "verifier repaint",
        [
            "run",
            "100dogs",
            "output.path=verified/paste",
            *DOGS,
            "pipeline=paste",
            *VERIFIERS["detector"],
        ],
    )
    yield "merge", ["merge", "run/paste", "import/coco", "--to", "merged", "--shard-size", "3"]
    yield "check", ["check", "run/paste", "--json"]
    yield "evaluate", ["evaluate", "run/paste", "--json"]
    for name in ("paste", "mixture"):
        yield f"repair {name}", ["repair", f"damaged/{name}"]
    yield "finalize", ["finalize", "damaged/backgrounds"]
    for name, overrides in TASKS.items():
        yield (
            f"task {name}",
            ["train", name, f"output.path=train/{name}", *TRAINED, "output.every=10", *overrides],
        )
    yield "preview", ["preview", "100dogs", "-n", "2", "-o", "previewed"]
    yield "describe", ["describe", "mixture", "--json"]
    yield "list", ["list", "--json"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", help="the commit to compare with")
    parser.add_argument("--only", nargs="+", default=[""])
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--in-place", action="store_true", help=argparse.SUPPRESS
    )  # the child of each of the two
    args = parser.parse_args()
    if args.in_place:
        run_steps(args.only)
        return
    old = args.old or json.loads(BASELINE.read_text())["commit"]
    with TemporaryDirectory() as scratch:
        folder = (args.keep or Path(scratch)).resolve()
        differences = compare(old, folder, args.only)
    if args.json:
        print(json.dumps({"old": old, "differences": differences}, indent=1))
    else:
        print("\n".join(differences or ["everything is the same"]))
    sys.exit(bool(differences))


def compare(old: str, folder: Path, only: list[str]) -> list[str]:
    """Run all steps with both, and return the differences, a line each."""
    tree = folder / "tree"
    if not tree.is_dir():
        command = [
            "git",
            "-C",
            str(ROOT),
            "archive",
            old,
            "--prefix=tree/",
            "-o",
            str(folder / "tree.tar"),
        ]
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(command, check=True)
        shutil.unpack_archive(folder / "tree.tar", folder, filter="data")
    if not (folder / "old" / "done").is_file():
        run_with(tree, folder / "old", only, None)
        (folder / "old" / "done").touch()
    shutil.rmtree(folder / "new", ignore_errors=True)
    run_with(ROOT, folder / "new", only, folder / "old")
    differences = [*find_failures(folder / "old"), *find_failures(folder / "new")]
    differences += compare_folders(folder / "old", folder / "new")
    return [*differences, *find_broken_imports(tree), *find_lost_scripts(tree)]


def find_failures(folder: Path) -> list[str]:
    """Return the steps that failed, a line each: such a step compares nothing."""
    failures = []
    for path in sorted((folder / "printed").glob("*.txt")):
        status = path.read_text().rpartition("exit status ")[2].strip()
        if status != "0":
            failures.append(f"{path.relative_to(folder.parent)}: exit status {status}")
    return failures


def run_with(tree: Path, folder: Path, only: list[str], old: Path | None) -> None:
    """Run the steps with the package of a tree in a new folder.

    Args:
        old: where the older commit wrote: its half-made datasets are put into the folder first.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_inputs(folder)
    if old is not None:
        leave_half(old, folder)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--in-place", "--only", *only]
    subprocess.run(command, cwd=folder, env=environment, check=True)


def run_steps(only: list[str]) -> None:
    """Run the steps in the working directory, and keep what each prints."""
    cli = importlib.import_module("synthgen.cli")
    printed = Path("printed")
    printed.mkdir()
    for name, argv in list_steps():
        if not name.startswith(tuple(only)):
            continue
        if name.startswith(("repair", "finalize")):
            damage(name)
        print(f"{Path.cwd().name}: {name}", file=sys.stderr, flush=True)
        with (printed / f"{name.replace(' ', '-')}.txt").open("w") as file:
            status = run_command(cli, argv, file.fileno())
            file.write(f"\nexit status {status}\n")
        if name.startswith("method") and name.split()[1] in HALF:
            finish_half(cli, name.split()[1], argv)


def run_command(cli: object, argv: list[str], file: int) -> int | str:
    """Run one command in this process with its standard output in a file, and return its exit status."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(file, 1)
    try:
        return cli.main(argv) or 0  # type: ignore[attr-defined]
    except SystemExit as error:
        return error.code or 0
    except Exception as error:
        traceback.print_exc()
        return repr(error)
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def write_inputs(folder: Path) -> None:
    """Write images, layouts and labels of other programs, without the package."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(7)
    (folder / "images").mkdir()
    (folder / "labelme").mkdir()
    lines, layouts = [], []
    for number in range(4):
        low = rng.integers(0, 256, (9, 9, 3), np.uint8)
        image = Image.fromarray(low).resize((160, 144), Image.Resampling.BICUBIC)
        image.save(folder / "images" / f"{number}.png")
        image.save(folder / "labelme" / f"{number}.jpg", quality=90)
        x, y = (int(value) for value in rng.integers(4, 60, 2))
        points = [[x, y], [x + 50, y + 40]]
        shape = {"label": "dog", "points": points, "shape_type": "rectangle", "flags": {}}
        record = {
            "version": "5.5.0",
            "shapes": [shape],
            "imagePath": f"{number}.jpg",
            "imageWidth": 160,
            "imageHeight": 144,
        }
        (folder / "labelme" / f"{number}.json").write_text(json.dumps(record))
        boxes = [[x, y, x + 50, y + 40], [x / 2, y, x / 2 + 30, y + 70]]
        annotation = {"width": 160, "height": 144, "categories": ["dog", "cat"], "boxes": boxes}
        words = [f"label_18_bbox_{x}_{y}_50_40", f"label_17_bbox_{x // 2}_{y}_30_70"]
        lines.append(
            {
                "file_name": f"images/{number}.png",
                "caption": f"image {number}",
                "custom_annotation": words,
            }
        )
        layouts.append(annotation)
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "layouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in layouts))


def damage(name: str) -> None:
    """Copy the dataset that a step repairs or finalises, and damage the copy."""
    dataset = "backgrounds" if name == "finalize" else name.split()[1]
    copy = Path("damaged") / dataset
    shutil.copytree(Path("run") / dataset, copy)
    if name == "finalize":
        (copy / "annotations" / "instances.json").unlink()
        (copy / "index.json").unlink()
        return
    tar = copy / "shards" / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:-700])
    (copy / "shards" / "000000.parquet").unlink()


def leave_half(old: Path, folder: Path) -> None:
    """Copy datasets that the older commit made, less one shard, the folder's name being `half`."""
    for name in HALF:
        if (old / "run" / name).is_dir():
            copy = folder / "half" / name
            shutil.copytree(old / "run" / name, copy)
            for file in copy.glob("shards/000001.*"):
                file.unlink()
            (copy / "annotations" / "instances.json").unlink()


def finish_half(cli: object, name: str, argv: list[str]) -> None:
    """Finish the half-made dataset of the older commit, if it is here."""
    folder = Path("half") / name
    if folder.is_dir():
        changed = [
            f"output.path={folder}" if word.startswith("output.path=") else word for word in argv
        ]
        with Path(f"printed/half-{name}.txt").open("w") as file:
            file.write(f"exit status {run_command(cli, changed, file.fileno())}\n")


def compare_folders(old: Path, new: Path) -> list[str]:
    """Return the files that are missing, additional or different, a line each."""
    differences = []
    before, after = read_digests(old), read_digests(new)
    for name in sorted({*before, *after}):
        if name.startswith(("half/", "printed/half", "done")):
            continue
        if before.get(name) != after.get(name):
            what = (
                "is missing"
                if name not in after
                else "is additional"
                if name not in before
                else "differs"
            )
            differences.append(f"{name}: {what}")
    for name in HALF:
        for file, digest in before.items():
            if (
                file.startswith(f"run/{name}/shards/")
                and after.get(file.replace("run/", "half/", 1)) != digest
            ):
                differences.append(
                    f"{file.replace('run/', 'half/', 1)}: differs from what the older commit makes"
                )
    return differences


def read_digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file by its name, less what tells the time."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not PASSING.search(name):
            data = path.read_bytes()
            if path.suffix in (".json", ".txt", ".jsonl", ".md"):
                data = TIMES.sub(b"", data.replace(str(folder).encode(), b"."))
                data = re.sub(
                    rb"\d+(\.\d+)? ?(s|seconds|min|images/s|images a second)\b", b"", data
                )
            digests[name] = hashlib.sha256(data).hexdigest()
    return digests


def find_broken_imports(tree: Path) -> list[str]:
    """Return each import of the older commit's documentation that fails here."""
    broken = []
    for page in [tree / "README.md", *sorted((tree / "docs").rglob("*.md"))]:
        for block in re.findall(
            r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
        ):
            for module, names in re.findall(
                r"^\s*from (synthgen[\w.]*) import ([\w, ]+)$", block, re.MULTILINE
            ):
                for name in names.split(","):
                    if not importable(module, name.strip()):
                        broken.append(
                            f"{page.relative_to(tree)}: from {module} import {name.strip()}: fails"
                        )
    return broken


def importable(module: str, name: str) -> bool:
    """Whether this tree's package has a name in a module."""
    program = f"from {module} import {name}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return (
        subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True
        ).returncode
        == 0
    )


def find_lost_scripts(tree: Path) -> list[str]:
    """Return each console script of the older commit that this tree does not declare."""
    old, new = (
        tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
        for root in (tree, ROOT)
    )
    return [f"pyproject.toml: script {name}: is missing" for name in old if name not in new]


if __name__ == "__main__":
    main()
