"""`synthgen preview`: draw the layouts of a job."""

import argparse
from pathlib import Path

from synthgen.cli.command import Commands, Result, load, spoken


def add(commands: Commands) -> None:
    """Add `preview`."""
    sub = spoken(
        commands.add_job("preview", preview_command, "draw sampled layouts; loads no model")
    )
    sub.add_argument("-n", type=int, default=8, help="how many layouts (default 8)")
    sub.add_argument("-o", "--output", type=Path, help="PNG to write (default: preview-NAME.png)")


def preview_command(args: argparse.Namespace) -> Result:
    """`--json`: {"path", "layouts", "boxes", "coverage", "canvas", "generated_at"}."""
    from synthgen.config import ConfigError

    job, spoken = load(args)
    from synthgen.engine.worker import draw_scene
    from synthgen.report.preview import write_preview

    if args.n < 1:
        raise ConfigError([f"command line: -n: {args.n} must be at least 1"])
    layouts = [draw_scene(job, i).layout for i in range(args.n)]
    path = args.output or Path(f"preview-{job.name}.png")
    write_preview(path, layouts, job.layout.examples())
    coverage = sum(layout.coverage() for layout in layouts) / len(layouts)
    data = {
        "path": str(path),
        "layouts": len(layouts),
        "boxes": sum(map(len, layouts)),
        "coverage": round(coverage, 4),
    }
    canvas, generated_at = job.layout.canvas, job.pipeline.generation_canvas(job.layout.canvas)
    data |= {"canvas": canvas, "generated_at": generated_at, **spoken}
    lines = [
        f"{path}: {data['layouts']} layouts, {data['boxes']} boxes, mean coverage {coverage:.1%}"
    ]
    if generated_at != canvas:
        sizes = " and shrunk to ".join(
            f"{width} x {height} px" for width, height in (generated_at, canvas)
        )
        lines.append(f"images are generated at {sizes} (pipeline.scale)")
    return 0, data, lines
