"""`synthgen run`: make a dataset."""

import argparse
from collections.abc import Callable
from typing import Any

from synthgen.cli.command import (
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    SHOWN,
    Commands,
    Result,
    again,
    load,
    split,
    spoken,
)

LISTED = 5  # failed shards on the screen


def add(commands: Commands) -> None:
    """Add `run`."""
    sub = spoken(commands.add_job("run", run_command, "make the dataset, or what is missing of it"))
    sub.add_argument(
        "--address",
        help="address of a running Ray cluster (default: RAY_ADDRESS, else Ray on this machine)",
    )
    sub.add_argument(
        "--overwrite",
        action="store_true",
        help="remove the dataset that is in the output folder first",
    )


def run_command(args: argparse.Namespace) -> Result:
    """`--json`: {"output", "images", "boxes", "shards", "bytes", "verified", "complete", "coco_files", "made", "seconds",
    "interrupted"}.

    "failed" too: [{"shard", "attempts", "error", "traceback"}], shards that were given up. With --voice or --say "spoken"
    (`load`), as with `preview` and `plan`.
    """
    from dataclasses import asdict

    job, spoken = load(args)  # before the heavy imports: a mistake is told at once
    from synthgen.engine.driver import run
    from synthgen.engine.pool import StoppedError
    from synthgen.report import write_report
    from synthgen.storage.location import open_store

    bar = _ProgressBar(args.quiet)
    try:
        result = run(job, args.address, args.overwrite, bar.open)
    except StoppedError as error:
        text = f"{error}. All finished shards are kept; the same command goes on from there"
        return EXIT_FAULT, {"error": [str(error)]}, [text]
    finally:
        bar.close()
    data = {
        "output": job.output.path,
        **result.counts,
        "made": result.made,
        "seconds": round(result.seconds, 3),
    }
    data |= {
        "interrupted": result.interrupted,
        "failed": [asdict(f) for f in result.failed],
        **spoken,
    }
    failures = failed_lines(job.output.path, data["failed"], args.verbose)
    if result.interrupted:
        said = ["--say", spoken["spoken"]["text"]] if spoken else []
        done = f"; {data['images']} of {job.images} images are done" if result.counts else ""
        text = f"stopped{done}. To go on: {again('run', args.job, *args.overrides, *said)}"
        return EXIT_TERMINATED if result.terminated else EXIT_INTERRUPTED, data, [*failures, text]
    if result.made and result.counts["complete"]:
        write_report(open_store(job.output.path), SHOWN)
    rate = (
        f", {result.made} made now at {result.made / result.seconds:.2f} images/s"
        if result.made
        else ", all were there"
    )
    rate = rate if result.made or result.counts["complete"] else ""
    lines = [
        f"{job.output.path}: {data['images']} images, {data['boxes']} boxes, {data['shards']} shards{rate}{split(data)}"
    ]
    return (EXIT_FAULT, data, [*failures, *lines]) if failures else (0, data, lines)


def failed_lines(out: str, failed: list[dict[str, Any]], tracebacks: bool) -> list[str]:
    """Shards that were given up, for a person."""
    if not failed:
        return []
    lines = []
    for shard in failed[:LISTED]:
        lines.append(
            f"shard {shard['shard']:06d} failed {shard['attempts']} time(s): {shard['error']}"
        )
        lines += [shard["traceback"]] if tracebacks else []
    more = [f"... and {len(failed) - LISTED} more"] if len(failed) > LISTED else []
    where = f"all are in {out}/failures.jsonl, with their tracebacks"
    text = f"{len(failed)} shard(s) could not be made ({where}); the same command tries them again"
    return [*lines, *more, text]


class _ProgressBar:
    """Images done, images/s and time left, on stderr."""

    def __init__(self, hidden: bool = False) -> None:
        self.bar: Any = None
        self.hidden = hidden

    def open(self, total: int, done: int) -> Callable[[int], None]:
        from tqdm import tqdm

        self.bar = tqdm(
            total=total,
            initial=done,
            unit="image",
            smoothing=0.05,
            dynamic_ncols=True,
            disable=self.hidden,
        )
        return self.advance

    def advance(self, images: int) -> None:
        self.bar.update(images)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
