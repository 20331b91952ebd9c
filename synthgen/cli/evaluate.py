"""`synthgen evaluate`: measure the quality of the images and labels of a dataset."""

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
        "measure a dataset with a detector, with CLIP, and in comparison with real images",
    )
    sub.add_argument(
        "out",
        metavar="OUT",
        help="output folder or URL of `synthgen run`; or a job, which is run first",
    )
    sub.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="new values for keys of the job",
    )
    sub.add_argument(
        "--detector",
        default="centernet-tiny",
        help="detector: an embedded one, a folder, or a Hugging Face id (default: centernet-tiny)",
    )
    sub.add_argument(
        "--threshold",
        type=float,
        default=0.3,
        help="minimum score of a detection that counts (default 0.3)",
    )
    sub.add_argument(
        "--clip",
        help="CLIP model: folder or Hugging Face id (default: none, CLIP scores are not measured)",
    )
    sub.add_argument(
        "--reference",
        type=Path,
        help="real images to compare with: a folder or a dataset (default: none, no comparison)",
    )
    sub.add_argument(
        "--encoder",
        default="efficientnet-lite0",
        help="image encoder for the comparison: folder or Hugging Face id (default: "
        "efficientnet-lite0)",
    )
    sub.add_argument(
        "--objects",
        action="store_true",
        help="compare crops of the boxes instead of whole images",
    )
    sub.add_argument("--limit", type=int, help="evaluate at most this many images")


def evaluate_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: what `synthgen.evaluation.evaluate.evaluate` returns.
    """
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
            spec.folder()  # raises an error if there is no such model
    reference = None
    if args.reference is not None:
        reference = Reference(args.reference, args.encoder, args.objects)
        problems = reference.check()
        if problems:
            raise ConfigError([f"command line: {problem}" for problem in problems])
    store, (status, data, run_lines) = open_or_run(args)
    if status:
        return status, data, run_lines
    from synthgen.evaluation.evaluate import evaluate
    from synthgen.evaluation.fidelity import NOT_MEASURED

    data = evaluate(store, detector, clip, reference, args.limit)
    lines = list(run_lines)
    not_measured = []
    for name, value in data.items():
        if value == NOT_MEASURED:
            not_measured.append(name)
        else:
            lines.append(f"{name:<12} {value}")
    if not_measured:
        lines.append(f"not measured: {', '.join(not_measured)}; see --clip and --reference")
    return 0, data, lines


def open_or_run(args: argparse.Namespace) -> tuple["Store", Result]:
    """Return the dataset that `out` names, after running it if it is a job.

    The second value is the result of the run, or an empty one for a dataset.
    """
    from synthgen.config import ConfigError, load_job
    from synthgen.dataset.info import read_info
    from synthgen.storage.location import is_url, open_store

    if not (is_url(args.out) or Path(args.out).is_dir()):
        job = load_job(args.out, args.overrides)
        argv = ["run", args.out, *args.overrides]
        if args.quiet:
            argv.append("-q")
        if args.verbose:
            argv.append("-v")
        parser = argparse.ArgumentParser()
        run.add(Commands(parser))
        return open_store(job.output.path), run.run_command(parser.parse_args(argv))
    if args.overrides:
        raise ConfigError(
            [f"{args.out}: is a dataset, and {args.overrides[0]!r} can only be given for a job"]
        )
    store = open_store(args.out)
    if read_info(store) is None:
        raise ConfigError([f"{args.out}: not a synthgen dataset (no readable dataset.json)"])
    return store, (0, {}, [])
