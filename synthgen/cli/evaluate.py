"""`synthgen evaluate`: measure the images and labels of a dataset."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from synthgen.cli import run
from synthgen.cli.command import Commands, Result

if TYPE_CHECKING:
    from synthgen.storage.base import Store


def add(commands: Commands) -> None:
    """Add `evaluate`."""
    sub = commands.add(
        "evaluate",
        evaluate_command,
        "hold a dataset against a detector, against CLIP, and against real pictures",
    )
    sub.add_argument(
        "out",
        metavar="OUT",
        help="output folder or URL of `synthgen run`; or a job, which is run first",
    )
    sub.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="of the job")
    sub.add_argument(
        "--detector",
        default="centernet-tiny",
        help="embedded, folder or Hub id (default: centernet-tiny)",
    )
    sub.add_argument(
        "--threshold",
        type=float,
        default=0.3,
        help="score from which a detection counts (default 0.3)",
    )
    sub.add_argument(
        "--clip", help="folder or Hub id of a CLIP; without one its figures are not measured"
    )
    sub.add_argument(
        "--reference",
        type=Path,
        help="real pictures, a folder or a dataset; without them theirs are not measured",
    )
    sub.add_argument(
        "--encoder",
        default="efficientnet-lite0",
        help="what they are compared in: folder or Hub id",
    )
    sub.add_argument(
        "--objects",
        action="store_true",
        help="compare what is in the boxes instead of whole pictures",
    )
    sub.add_argument("--limit", type=int, help="look at so many images")


def evaluate_command(args: argparse.Namespace) -> Result:
    """`--json`: what `synthgen.evaluation.evaluate.evaluate` returns."""
    from synthgen.config import ConfigError
    from synthgen.evaluation.reference_images import Reference
    from synthgen.verification.clip import Spec as Clip
    from synthgen.verification.detector import Spec as Detector

    if not 0 <= args.threshold <= 1:
        raise ConfigError([f"command line: --threshold: {args.threshold:g} must be in [0, 1]"])
    if args.limit is not None and args.limit < 1:
        raise ConfigError([f"command line: --limit: {args.limit} must be at least 1"])
    detector = Detector(model=args.detector, threshold=args.threshold)
    clip = None if args.clip is None else Clip(model=args.clip)
    for spec in (detector, clip):
        if spec is not None:
            spec.folder()  # says what is wrong with the name
    reference = (
        None if args.reference is None else Reference(args.reference, args.encoder, args.objects)
    )
    if reference is not None and (problems := reference.check()):
        raise ConfigError([f"command line: {problem}" for problem in problems])
    store, (status, data, made) = dataset_of(args)
    if status:
        return status, data, made
    from synthgen.evaluation.evaluate import evaluate
    from synthgen.evaluation.fidelity import NOT_MEASURED

    data = evaluate(store, detector, clip, reference, args.limit)
    told = [f"{name:<12} {value}" for name, value in data.items() if value != NOT_MEASURED]
    left = ", ".join(name for name, value in data.items() if value == NOT_MEASURED)
    return (
        0,
        data,
        [*made, *told, *([f"not measured: {left}; see --clip and --reference"] if left else [])],
    )


def dataset_of(args: argparse.Namespace) -> tuple["Store", Result]:
    """The dataset that is meant by `out`; if that is a job it is run, and what came of it is returned too."""
    from synthgen.config import ConfigError, load_job
    from synthgen.dataset.info import read_info
    from synthgen.storage.location import is_url, open_store

    if not (is_url(args.out) or Path(args.out).is_dir()):
        job = load_job(args.out, args.overrides)
        loudness = [option for option, said in (("-q", args.quiet), ("-v", args.verbose)) if said]
        parser = argparse.ArgumentParser()
        run.add(Commands(parser))
        run_args = parser.parse_args(["run", args.out, *args.overrides, *loudness])
        return open_store(job.output.path), run.run_command(run_args)
    if args.overrides:
        raise ConfigError([f"{args.out}: a dataset; {args.overrides[0]!r} is for jobs"])
    store = open_store(args.out)
    if read_info(store) is None:
        raise ConfigError([f"{args.out}: not a synthgen dataset (no readable dataset.json)"])
    return store, (0, {}, [])
