"""Commands that make a dataset, or tell what it will be."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthgen.commands import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_TERMINATED, Commands, Result, again
from synthgen.commands.speaking import load, spoken

LISTED = 5  # failed shards on the screen
SHOWN = 200  # pictures in the report that `run` writes: it is made anew with each extension of a dataset


def add(commands: Commands) -> None:
    """Add `run`, `preview` and `plan`."""
    sub = spoken(commands.add_job("run", run_command, "make the dataset, or what is missing of it"))
    sub.add_argument("--address", help="address of a running Ray cluster (default: RAY_ADDRESS, else Ray on this machine)")
    sub.add_argument("--overwrite", action="store_true", help="remove the dataset that is in the output folder first")
    sub = spoken(commands.add_job("preview", preview_command, "draw sampled layouts; loads no model"))
    sub.add_argument("-n", type=int, default=8, help="how many layouts (default 8)")
    sub.add_argument("-o", "--output", type=Path, help="PNG to write (default: preview-NAME.png)")
    sub = spoken(commands.add_job("plan", plan_command, "time a few images and tell what the whole job will take"))
    sub.add_argument("--address", help=argparse.SUPPRESS)


def run_command(args: argparse.Namespace) -> Result:
    """`--json`: {"output", "images", "boxes", "shards", "bytes", "verified", "complete", "coco_files", "made", "seconds",
    "interrupted"}.

    "failed" too: [{"shard", "attempts", "error", "traceback"}], shards that were given up. With --voice or --say "spoken"
    (`load`), as with `preview` and `plan`.
    """
    from dataclasses import asdict

    job, spoken = load(args)  # before the heavy imports: a mistake is told at once
    from synthgen.engine.pool import StoppedError
    from synthgen.engine.run import run
    from synthgen.report import write_report

    bar = _ProgressBar(args.quiet)
    try:
        result = run(job, args.address, args.overwrite, bar.open)
    except StoppedError as error:
        text = f"{error}. All finished shards are kept; the same command goes on from there"
        return EXIT_FAULT, {"error": [str(error)]}, [text]
    finally:
        bar.close()
    data = {"output": job.output.path, **result.counts, "made": result.made, "seconds": round(result.seconds, 3)}
    data |= {"interrupted": result.interrupted, "failed": [asdict(f) for f in result.failed], **spoken}
    failures = failed_lines(job.output.path, data["failed"], args.verbose)
    if result.interrupted:
        said = ["--say", spoken["spoken"]["text"]] if spoken else []
        done = f"; {data['images']} of {job.images} images are done" if result.counts else ""
        text = f"stopped{done}. To go on: {again('run', args.job, *args.overrides, *said)}"
        return EXIT_TERMINATED if result.terminated else EXIT_INTERRUPTED, data, [*failures, text]
    if result.made and result.counts["complete"]:
        write_report(job.output.path, SHOWN)
    rate = f", {result.made} made now at {result.made / result.seconds:.2f} images/s" if result.made else ", all were there"
    rate = rate if result.made or result.counts["complete"] else ""
    lines = [f"{job.output.path}: {data['images']} images, {data['boxes']} boxes, {data['shards']} shards{rate}{split(data)}"]
    return (EXIT_FAULT, data, [*failures, *lines]) if failures else (0, data, lines)


def failed_lines(out: str, failed: list[dict[str, Any]], tracebacks: bool) -> list[str]:
    """Shards that were given up, for a person."""
    if not failed:
        return []
    lines = []
    for shard in failed[:LISTED]:
        lines.append(f"shard {shard['shard']:06d} failed {shard['attempts']} time(s): {shard['error']}")
        lines += [shard["traceback"]] if tracebacks else []
    more = [f"... and {len(failed) - LISTED} more"] if len(failed) > LISTED else []
    where = f"all are in {out}/failures.jsonl, with their tracebacks"
    text = f"{len(failed)} shard(s) could not be made ({where}); the same command tries them again"
    return [*lines, *more, text]


def split(counts: dict[str, Any]) -> str:
    """That a dataset has several COCO files, to be told after its figures."""
    from synthgen.shards.coco import SHARDS_A_FILE

    files = counts["coco_files"]
    if files == 1:
        return ""
    return f"; COCO annotations in {files} files of {SHARDS_A_FILE} shards each: annotations/instances-00000.json …"


class _ProgressBar:
    """Images done, images/s and time left, on stderr."""

    def __init__(self, hidden: bool = False) -> None:
        self.bar: Any = None
        self.hidden = hidden

    def open(self, total: int, done: int) -> Callable[[int], None]:
        from tqdm import tqdm

        self.bar = tqdm(total=total, initial=done, unit="image", smoothing=0.05, dynamic_ncols=True, disable=self.hidden)
        return self.advance

    def advance(self, images: int) -> None:
        self.bar.update(images)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def preview_command(args: argparse.Namespace) -> Result:
    """`--json`: {"path", "layouts", "boxes", "coverage", "canvas", "generated_at"}."""
    from synthgen.config import ConfigError

    job, spoken = load(args)
    from synthgen.engine.worker import draw_scene
    from synthgen.preview import write_preview

    if args.n < 1:
        raise ConfigError([f"command line: -n: {args.n} must be at least 1"])
    layouts = [draw_scene(job, i).layout for i in range(args.n)]
    path = args.output or Path(f"preview-{job.name}.png")
    write_preview(path, layouts, job.layout.examples())
    coverage = sum(layout.coverage() for layout in layouts) / len(layouts)
    data = {"path": str(path), "layouts": len(layouts), "boxes": sum(map(len, layouts)), "coverage": round(coverage, 4)}
    canvas, generated_at = job.layout.canvas, job.pipeline.generation_canvas(job.layout.canvas)
    data |= {"canvas": canvas, "generated_at": generated_at, **spoken}
    lines = [f"{path}: {data['layouts']} layouts, {data['boxes']} boxes, mean coverage {coverage:.1%}"]
    if generated_at != canvas:
        sizes = " and shrunk to ".join(f"{width} x {height} px" for width, height in (generated_at, canvas))
        lines.append(f"images are generated at {sizes} (pipeline.scale)")
    return 0, data, lines


def plan_command(args: argparse.Namespace) -> Result:
    """`--json`: the fields of `synthgen.engine.plan.Plan`."""
    from dataclasses import asdict

    job, spoken = load(args)
    from synthgen.engine.plan import plan

    estimate = plan(job, args.address)
    return 0, {**asdict(estimate), **spoken}, estimate.lines()
