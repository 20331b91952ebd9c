#!/usr/bin/env python3
"""Run many small commands with an older commit and with this tree, and compare all output files.

usage: benchmarks/same.py [--old COMMIT] [--only PREFIX …] [--keep FOLDER] [--json]

Both versions run every method, sampler, verifier, format and training task, and the commands
`repair`, `merge` and `finalize`, once each in a new folder on the same inputs. Then all files are
compared byte for byte, and trainings by their figures and weights. This tree also finishes
half-finished datasets of the older commit, which must become equal to finished ones of the older
commit. The imports in the documentation of the older commit and its console scripts must work in
this tree. Of what commands print, the exit status and the keys of JSON are compared, not the words.
The script lists the differences, and its exit status is 1 if there are any.

  --old COMMIT     the older commit (default: the commit in benchmarks/results/same.json)
  --only PREFIX    run only the steps whose names start with a prefix; a step may need earlier ones
  --keep FOLDER    keep the output in a folder; the output of the older commit is reused if the
                   folder has it
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
        "layout={sampler: coco, source: export/coco/annotations/instances_train.json,"
        " canvas: [128, 128]}",
    ],
    "file": [*PLACED, "layout={sampler: file, source: layouts.jsonl, canvas: [128, 128]}"],
    "fit": [*PLACED, "layout={sampler: fit, model: fitted.json, canvas: [128, 128]}"],
}
VERIFIERS = {
    "detector": [
        "verify={verifier: detector, model: centernet-tiny,"
        " on_failure: [repair, tighten, redo, flag]}"
    ],
    "classifier": ["verify={verifier: classifier, on_failure: [redo, flag]}"],
    "panel": [
        "verify={verifier: panel, of: [{verifier: detector, model: centernet-tiny},"
        " {verifier: classifier}]}"
    ],
}
TRAINING = [
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
# Half-finished copies of these datasets of the older commit are finished by this tree.
HALF = ("paste", "mixture", "backgrounds")
IMPORTS = {
    "coco": ["export/coco/annotations/instances_train.json"],
    "yolo": ["export/yolo", "--split", "all"],
    "voc": ["export/voc"],
    "jsonl": ["lines.jsonl"],
    "labelme": ["labelme"],
}
# Files that depend on the time, the process or the place are not compared.
VOLATILE_FILES = re.compile(
    r"(^|/)(log\.jsonl|report\.html|state\.pt|events\.out\.[^/]*|\.export/.*|loss\.png|time\.json)$"
)
# Values that depend on them are removed before the comparison.
TIMES = re.compile(rb'"(seconds|attempts|created|host|pid)": ?("[^"]*"|[\d.e-]+),?')
DURATIONS = re.compile(rb"\d+(\.\d+)? ?(s|seconds|min|images/s|images a second)\b")
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IMPORT = re.compile(r"^\s*from (synthgen[\w.]*) import ([\w, ]+)$", re.MULTILINE)


def list_steps() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the command line of each step, each after the steps that it needs."""
    run = ["run", "100dogs"]
    for name, overrides in METHODS.items():
        yield f"method {name}", [*run, f"output.path=run/{name}", f"name={name}", *overrides]
    yield "ray", [*run, "output.path=run/ray", *METHODS["paste"], "workers=2"]
    for name in ("coco", "yolo", "hf", "voc"):
        options = ["--to", name, "--val", "0.25"]
        yield f"export {name}", ["export", "run/paste", f"export/{name}", *options]
    for name, arguments in IMPORTS.items():
        yield f"import {name}", ["import", *arguments, f"import/{name}", "--shard-size", "2"]
    yield "fit", ["fit", "run/paste", "-o", "fitted.json"]
    for name, overrides in SAMPLERS.items():
        yield f"sampler {name}", [*run, f"output.path=sampled/{name}", *overrides]
    for name, overrides in VERIFIERS.items():
        arguments = [f"output.path=verified/{name}", *TWO, "pipeline=mixture-tiny", *overrides]
        yield f"verifier {name}", [*run, *arguments]
    arguments = ["output.path=verified/paste", *DOGS, "pipeline=paste", *VERIFIERS["detector"]]
    yield "verifier repaint", [*run, *arguments]
    yield "merge", ["merge", "run/paste", "import/coco", "--to", "merged", "--shard-size", "3"]
    yield "check", ["check", "run/paste", "--json"]
    yield "evaluate", ["evaluate", "run/paste", "--json"]
    for name in ("paste", "mixture"):
        yield f"repair {name}", ["repair", f"damaged/{name}"]
    yield "finalize", ["finalize", "damaged/backgrounds"]
    for name, overrides in TASKS.items():
        arguments = [f"output.path=train/{name}", *TRAINING, "output.every=10", *overrides]
        yield f"task {name}", ["train", name, *arguments]
    yield "preview", ["preview", "100dogs", "-n", "2", "-o", "previewed"]
    yield "describe", ["describe", "mixture", "--json"]
    yield "list", ["list", "--json"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", help="the older commit")
    parser.add_argument("--only", nargs="+", default=[""])
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", action="store_true")
    # The child process of each version gets this option.
    parser.add_argument("--in-place", action="store_true", help=argparse.SUPPRESS)
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
    """Run all steps with both versions, and return the differences, a line each."""
    tree = folder / "tree"
    if not tree.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        archive = str(folder / "tree.tar")
        command = ["git", "-C", str(ROOT), "archive", old, "--prefix=tree/", "-o", archive]
        subprocess.run(command, check=True)
        shutil.unpack_archive(archive, folder, filter="data")
    if not (folder / "old" / "done").is_file():
        run_with(tree, folder / "old", only, None)
        (folder / "old" / "done").touch()
    shutil.rmtree(folder / "new", ignore_errors=True)
    run_with(ROOT, folder / "new", only, folder / "old")
    differences = [*find_failures(folder / "old"), *find_failures(folder / "new")]
    differences += compare_folders(folder / "old", folder / "new")
    return [*differences, *find_broken_imports(tree), *find_missing_scripts(tree)]


def find_failures(folder: Path) -> list[str]:
    """Return the steps that failed, a line each, because their files cannot be compared."""
    failures = []
    for path in sorted((folder / "printed").glob("*.txt")):
        status = path.read_text().rpartition("exit status ")[2].strip()
        if status != "0":
            failures.append(f"{path.relative_to(folder.parent)}: exit status {status}")
    return failures


def run_with(tree: Path, folder: Path, only: list[str], old: Path | None) -> None:
    """Run the steps with the package of a tree in a new folder.

    Args:
        old: the folder of the older commit, whose half-finished datasets are copied first.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_inputs(folder)
    if old is not None:
        copy_half(old, folder)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--in-place", "--only", *only]
    subprocess.run(command, cwd=folder, env=environment, check=True)


def run_steps(only: list[str]) -> None:
    """Run the steps in the working directory, and write what each prints to a file."""
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
        kind, _, method = name.partition(" ")
        if kind == "method" and method in HALF:
            finish_half(cli, method, argv)


def run_command(cli: object, argv: list[str], file: int) -> int | str:
    """Run a command in this process, and return its exit status.

    Args:
        file: the descriptor of a file for the standard output.
    """
    sys.stdout.flush()
    stdout = os.dup(1)
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
        os.dup2(stdout, 1)
        os.close(stdout)


def write_inputs(folder: Path) -> None:
    """Write images, layouts, and labels in the formats of other programs, without the package."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(7)
    (folder / "images").mkdir()
    (folder / "labelme").mkdir()
    lines = []
    layouts = []
    for number in range(4):
        noise = rng.integers(0, 256, (9, 9, 3), np.uint8)
        image = Image.fromarray(noise).resize((160, 144), Image.Resampling.BICUBIC)
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
        layout = {"width": 160, "height": 144, "categories": ["dog", "cat"], "boxes": boxes}
        line = {
            "file_name": f"images/{number}.png",
            "caption": f"image {number}",
            "custom_annotation": [
                f"label_18_bbox_{x}_{y}_50_40",
                f"label_17_bbox_{x // 2}_{y}_30_70",
            ],
        }
        lines.append(json.dumps(line) + "\n")
        layouts.append(json.dumps(layout) + "\n")
    (folder / "lines.jsonl").write_text("".join(lines))
    (folder / "layouts.jsonl").write_text("".join(layouts))


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


def copy_half(old: Path, folder: Path) -> None:
    """Copy datasets of the older commit to the folder `half`, without one of their shards."""
    for name in HALF:
        if (old / "run" / name).is_dir():
            copy = folder / "half" / name
            shutil.copytree(old / "run" / name, copy)
            for file in copy.glob("shards/000001.*"):
                file.unlink()
            (copy / "annotations" / "instances.json").unlink()


def finish_half(cli: object, name: str, argv: list[str]) -> None:
    """Finish the half-finished dataset of the older commit, if there is one."""
    folder = Path("half") / name
    if folder.is_dir():
        arguments = [re.sub(r"^output\.path=.*", f"output.path={folder}", word) for word in argv]
        with Path(f"printed/half-{name}.txt").open("w") as file:
            status = run_command(cli, arguments, file.fileno())
            file.write(f"exit status {status}\n")


def compare_folders(old: Path, new: Path) -> list[str]:
    """Return the files that are missing, additional or different, a line each."""
    differences = []
    before = read_digests(old)
    after = read_digests(new)
    for name in sorted({*before, *after}):
        if name.startswith(("half/", "printed/half", "done")):
            continue
        if name not in after:
            differences.append(f"{name}: is missing")
        elif name not in before:
            differences.append(f"{name}: is additional")
        elif before[name] != after[name]:
            differences.append(f"{name}: differs")
    shards = tuple(f"run/{name}/shards/" for name in HALF)
    for name, digest in before.items():
        finished = name.replace("run/", "half/", 1)
        if name.startswith(shards) and after.get(finished) != digest:
            differences.append(f"{finished}: differs from the file of the older commit")
    return differences


def read_digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file by its name, without values that depend on the time."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not VOLATILE_FILES.search(name):
            data = path.read_bytes()
            if path.suffix in (".json", ".txt", ".jsonl", ".md"):
                data = TIMES.sub(b"", data.replace(str(folder).encode(), b"."))
                data = DURATIONS.sub(b"", data)
            if name.startswith("printed/"):
                data = "\n".join(list_printed_keys(data.decode())).encode()
            digests[name] = hashlib.sha256(data).hexdigest()
    return digests


def list_printed_keys(text: str) -> list[str]:
    """Return the exit status and the dotted keys of each JSON object that a command printed.

    Words that are printed for people, and descriptions, may change; what programs read may not.
    """
    keys = []
    for line in text.splitlines():
        if line.startswith("{"):
            keys += list_keys(json.loads(line), "")
        elif line.startswith("exit status "):
            keys.append(line)
    return sorted(keys)


def list_keys(value: object, prefix: str) -> list[str]:
    """Return the dotted keys of a JSON value, and of the values in it."""
    keys = []
    if isinstance(value, dict):
        for key, child in value.items():
            keys += [f"{prefix}{key}", *list_keys(child, f"{prefix}{key}.")]
    elif isinstance(value, list):
        for index, child in enumerate(value):
            keys += list_keys(child, f"{prefix}{index}.")
    return keys


def find_broken_imports(tree: Path) -> list[str]:
    """Return each import of the older commit's documentation that fails in this tree."""
    broken = []
    for page in [tree / "README.md", *sorted((tree / "docs").rglob("*.md"))]:
        for statement in list_imports(page.read_text()):
            if not runs(statement):
                broken.append(f"{page.relative_to(tree)}: {statement}: fails")
    return broken


def list_imports(text: str) -> list[str]:
    """Return an import statement for each name that the Python code of a page imports."""
    statements = []
    for block in PYTHON_BLOCK.findall(text):
        for module, names in IMPORT.findall(block):
            for name in names.split(","):
                statements.append(f"from {module} import {name.strip()}")
    return statements


def runs(statement: str) -> bool:
    """Return whether a statement runs with the package of this tree."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", statement]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def find_missing_scripts(tree: Path) -> list[str]:
    """Return each console script of the older commit that this tree does not declare."""
    scripts = read_scripts(ROOT)
    missing = []
    for name in read_scripts(tree):
        if name not in scripts:
            missing.append(f"pyproject.toml: script {name}: is missing")
    return missing


def read_scripts(tree: Path) -> dict[str, str]:
    """Return the console scripts that a tree declares."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())
    scripts: dict[str, str] = project["project"]["scripts"]
    return scripts


if __name__ == "__main__":
    main()
