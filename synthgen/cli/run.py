"""`synthgen run`: generate the dataset of a job."""

import argparse
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from synthgen.cli.command import (
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    REPORT_IMAGES,
    Commands,
    Result,
    add_prompt_options,
    describe_coco_files,
    format_command,
    load_prompted_job,
)

if TYPE_CHECKING:
    from synthgen.config.job import Job
    from synthgen.engine.driver import RunResult
    from synthgen.engine.worker import Progress

MAX_FAILURES_PRINTED = 5
BAR = "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total} images [{elapsed}<{remaining}, {rate_fmt}]"


def add(commands: Commands) -> None:
    """Add `run`."""
    sub = commands.add_job(
        "run", run_command, "generate the dataset of a job, or the images that are still missing"
    )
    add_prompt_options(sub)
    sub.add_argument(
        "--address",
        help="address of a running Ray cluster (default: the environment variable RAY_ADDRESS; if "
        "it is not set, Ray is started on this machine)",
    )
    sub.add_argument(
        "--overwrite",
        action="store_true",
        help="first remove the dataset in the output folder, if there is one",
    )


def run_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: {"output", "images", "boxes", "shards", "bytes", "verified", "complete", "coco_files",
    "made", "seconds", "interrupted", "failed"}, and with --voice or --say "spoken", as
    `load_prompted_job` returns it.

    "failed": [{"shard", "attempts", "error", "traceback"}] of shards that failed in all attempts.
    """
    from dataclasses import asdict

    # Load the job before the slow imports, so that mistakes are reported without a delay.
    job, prompt_data = load_prompted_job(args)
    from synthgen.engine.generation import run
    from synthgen.engine.pool import StoppedError
    from synthgen.report import write_report
    from synthgen.storage.location import open_store

    bar = _ProgressBar(args.quiet)
    try:
        result = run(job, args.address, args.overwrite, bar.open)
    except StoppedError as error:
        text = (
            f"{error}. All finished shards are kept; run the same command again to continue from "
            "there"
        )
        return EXIT_FAULT, {"error": [str(error)]}, [text]
    finally:
        bar.close()
    data = {
        "output": job.output.path,
        **result.counts,
        "made": result.made,
        "seconds": round(result.seconds, 3),
        "interrupted": result.interrupted,
        "failed": [asdict(failure) for failure in result.failed],
        **prompt_data,
    }
    lines = describe_failures(job.output.path, data["failed"], args.verbose)
    if result.interrupted:
        arguments = [args.job, *args.overrides]
        if prompt_data:
            arguments += ["--say", prompt_data["spoken"]["text"]]
        done = f"; {data['images']} of {job.images} images are done" if result.counts else ""
        lines.append(f"stopped{done}. To continue: {format_command('run', *arguments)}")
        return EXIT_TERMINATED if result.terminated else EXIT_INTERRUPTED, data, lines
    if result.made and result.counts["complete"]:
        write_report(open_store(job.output.path), REPORT_IMAGES)
    status = EXIT_FAULT if lines else 0
    lines.append(describe_result(job, result))
    return status, data, lines


def describe_result(job: "Job", result: "RunResult") -> str:
    """Return a summary of a run that was not interrupted."""
    counts = result.counts
    rate = ""
    if result.made:
        rate = f", {result.made} generated now at {result.made / result.seconds:.2f} images/s"
    elif counts["complete"]:
        rate = ", all existed already"
    return (
        f"{job.output.path}: {counts['images']} images, {counts['boxes']} boxes, "
        f"{counts['shards']} shards{rate}{describe_coco_files(counts)}"
    )


def describe_failures(out: str, failed: list[dict[str, Any]], tracebacks: bool) -> list[str]:
    """Return lines about the shards that failed in all attempts; [] if there are none.

    Args:
        out: the output folder of the dataset.
        tracebacks: whether to include the tracebacks.
    """
    if not failed:
        return []
    lines = []
    for shard in failed[:MAX_FAILURES_PRINTED]:
        lines.append(
            f"shard {shard['shard']:06d} failed {shard['attempts']} time(s): {shard['error']}"
        )
        if tracebacks:
            lines.append(shard["traceback"])
    if len(failed) > MAX_FAILURES_PRINTED:
        lines.append(f"... and {len(failed) - MAX_FAILURES_PRINTED} more")
    lines.append(
        f"{len(failed)} shard(s) could not be generated (all are in {out}/failures.jsonl, with "
        "their tracebacks); run the same command again to retry them"
    )
    return lines


class _ProgressBar:
    """A progress bar on stderr: what is done now, images done, and the remaining time.

    It advances with every part of an image that is done. Its clock starts with the first of them,
    so that the remaining time does not count how long the workers took to start.
    """

    def __init__(self, hidden: bool = False) -> None:
        self.bar: Any = None
        self.hidden = hidden
        self.done = 0
        self.parts: dict[int, float] = {}  # of the batch in progress of each shard, in images
        self.is_started = False

    def open(self, total: int, done: int) -> Callable[["Progress", str], None]:
        """Show the bar, and return a function that shows a progress on it."""
        from tqdm import tqdm

        self.done = done
        self.bar = tqdm(
            desc="starting workers",
            total=total,
            initial=done,
            unit="image",
            smoothing=0,
            bar_format=BAR,
            dynamic_ncols=True,
            disable=self.hidden,
        )
        return self.show

    def show(self, progress: "Progress", first_image: str) -> None:
        """Show a progress, and the path of the first finished image if there is one."""
        self.parts.pop(progress.shard, None)
        if progress.part:
            self.parts[progress.shard] = progress.part
        self.done += progress.images
        position = self.done + sum(self.parts.values())
        if progress.activity:
            self.bar.set_description(progress.activity, refresh=False)
        if not self.is_started and position > self.bar.n:
            self.is_started = True
            self.bar.start_t = time.time()
            self.bar.last_print_t = self.bar.start_t
        self.bar.update(position - self.bar.n)
        if first_image and not self.hidden:
            self.bar.write(f"first image: {first_image}", sys.stderr)

    def close(self) -> None:
        """Close the bar if it was opened."""
        if self.bar is not None:
            self.bar.close()
