"""Commands that look at a dataset."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from synthgen.commands import EXIT_FAULT, Commands, Result
from synthgen.commands.making import run_command, split

if TYPE_CHECKING:
    from synthgen.shards.store import Store


def add(commands: Commands) -> None:
    """Add `check`, `finalize`, `report` and `evaluate`."""
    for name, run, text in (
        ("check", check_command, "look for anything wrong with a dataset"),
        ("finalize", finalize_command, "write the dataset files for what is committed so far"),
    ):
        commands.add(name, run, text).add_argument("out", metavar="OUT", help="output folder, or URL")
    sub = commands.add("report", report_command, "write report.html, a page to look at a dataset with")
    sub.add_argument("out", metavar="OUT", help="output folder or URL of `synthgen run`")
    sub.add_argument("--most", type=int, default=2000, help="pictures that the page shows (default 2000)")
    sub = commands.add("evaluate", evaluate_command, "hold a dataset against a detector, against CLIP, and against real pictures")
    sub.add_argument("out", metavar="OUT", help="output folder or URL of `synthgen run`; or a job, which is run first")
    sub.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="of the job")
    sub.add_argument("--detector", default="centernet-tiny", help="embedded, folder or Hub id (default: centernet-tiny)")
    sub.add_argument("--threshold", type=float, default=0.3, help="score from which a detection counts (default 0.3)")
    sub.add_argument("--clip", help="folder or Hub id of a CLIP; without one its figures are not measured")
    sub.add_argument("--reference", type=Path, help="real pictures, a folder or a dataset; without them theirs are not measured")
    sub.add_argument("--encoder", default="efficientnet-lite0", help="what they are compared in: folder or Hub id")
    sub.add_argument("--objects", action="store_true", help="compare what is in the boxes instead of whole pictures")
    sub.add_argument("--limit", type=int, help="look at so many images")


def check_command(args: argparse.Namespace) -> Result:
    """`--json`: {"ok", "faults", "images", "boxes", "shards"}."""
    from synthgen.shards.check import check_dataset

    faults, counts = check_dataset(args.out)
    data = {"ok": not faults, "faults": faults, **counts}
    summary = f"{counts['images']} images, {counts['boxes']} boxes, {counts['shards']} shards"
    if faults:
        return EXIT_FAULT, data, [*faults, f"{args.out}: {len(faults)} faults in {summary}"]
    return 0, data, [f"ok: {summary}"]


def finalize_command(args: argparse.Namespace) -> Result:
    """`--json`: {"output", "images", "boxes", "shards", "bytes", "verified", "complete", "coco_files"}."""
    from synthgen.config import ConfigError
    from synthgen.shards.dataset import finalize, read_info
    from synthgen.shards.lock import Lock
    from synthgen.shards.store import open_store

    store = open_store(args.out)
    info = read_info(store)
    if info is None:
        raise ConfigError([f"{args.out}: no dataset here (dataset.json is missing or damaged)"])
    with Lock(store):
        counts = finalize(store, info)
    done = "complete" if counts["complete"] else f"{info.asked - counts['images']} images are still missing"
    text = f"{args.out}: {counts['images']} images, {counts['boxes']} boxes; {done}{split(counts)}"
    return 0, {"output": args.out, **counts}, [text]


def report_command(args: argparse.Namespace) -> Result:
    """`--json`: {"path", "images", "shown", "bytes"}."""
    from synthgen.config import ConfigError
    from synthgen.report import write_report

    if args.most < 1:
        raise ConfigError([f"command line: --most: {args.most} must be at least 1"])
    counts = write_report(args.out, args.most)
    path = f"{args.out.rstrip('/')}/report.html"
    text = f"{path}: {counts['shown']} of {counts['images']} images, {counts['bytes'] / 1e6:.1f} MB"
    return 0, {"path": path, **counts}, [text]


def evaluate_command(args: argparse.Namespace) -> Result:
    """`--json`: what `synthgen.evaluate.dataset.evaluate` returns."""
    from synthgen.config import ConfigError
    from synthgen.evaluate.reference import Reference
    from synthgen.verify.verifiers.clip import Spec as Clip
    from synthgen.verify.verifiers.detector import Spec as Detector

    if not 0 <= args.threshold <= 1:
        raise ConfigError([f"command line: --threshold: {args.threshold:g} must be in [0, 1]"])
    if args.limit is not None and args.limit < 1:
        raise ConfigError([f"command line: --limit: {args.limit} must be at least 1"])
    detector = Detector(model=args.detector, threshold=args.threshold)
    clip = None if args.clip is None else Clip(model=args.clip)
    for spec in (detector, clip):
        if spec is not None:
            spec.folder()  # says what is wrong with the name
    reference = None if args.reference is None else Reference(args.reference, args.encoder, args.objects)
    if reference is not None and (problems := reference.check()):
        raise ConfigError([f"command line: {problem}" for problem in problems])
    out, (status, data, made) = dataset_of(args)
    if status:
        return status, data, made
    from synthgen.evaluate.dataset import evaluate
    from synthgen.evaluate.fidelity import NOT_MEASURED

    data = evaluate(out, detector, clip, reference, args.limit)
    told = [f"{name:<12} {value}" for name, value in data.items() if value != NOT_MEASURED]
    left = ", ".join(name for name, value in data.items() if value == NOT_MEASURED)
    return 0, data, [*made, *told, *([f"not measured: {left}; see --clip and --reference"] if left else [])]


def dataset_of(args: argparse.Namespace) -> tuple["Store", Result]:
    """The dataset that is meant by `out`; if that is a job it is run, and what came of it is returned too."""
    from synthgen.cli import parse
    from synthgen.config import ConfigError, load_job
    from synthgen.shards.dataset import read_info
    from synthgen.shards.store import is_url, open_store

    if not (is_url(args.out) or Path(args.out).is_dir()):
        job = load_job(args.out, args.overrides)
        loudness = [option for option, said in (("-q", args.quiet), ("-v", args.verbose)) if said]
        run_args = parse(["run", args.out, *args.overrides, *loudness])
        return open_store(job.output.path), run_command(run_args)
    if args.overrides:
        raise ConfigError([f"{args.out}: a dataset; {args.overrides[0]!r} is for jobs"])
    out = open_store(args.out)
    if read_info(out) is None:
        raise ConfigError([f"{args.out}: not a synthgen dataset (no readable dataset.json)"])
    return out, (0, {}, [])
