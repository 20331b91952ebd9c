"""`synthgen preview`: draw the layouts of a job."""

import argparse
from pathlib import Path

from synthgen.cli.command import Commands, Result, add_prompt_options, load_prompted_job


def add(commands: Commands) -> None:
    """Add `preview`."""
    sub = commands.add_job(
        "preview", preview_command, "draw some layouts of a job; no model is loaded"
    )
    add_prompt_options(sub)
    sub.add_argument("-n", type=int, default=8, help="number of layouts (default 8)")
    sub.add_argument(
        "-o", "--output", type=Path, help="PNG file to write (default: preview-NAME.png)"
    )


def preview_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: {"path", "layouts", "boxes", "coverage", "canvas", "generated_at"}.
    """
    from synthgen.config import ConfigError

    job, prompt_data = load_prompted_job(args)
    from synthgen.engine.worker import sample_scene
    from synthgen.report.preview import write_preview

    if args.n < 1:
        raise ConfigError([f"command line: -n: {args.n} must be at least 1"])
    layouts = [sample_scene(job, i).layout for i in range(args.n)]
    path = args.output or Path(f"preview-{job.name}.png")
    write_preview(path, layouts, job.layout.examples())
    boxes = sum(len(layout) for layout in layouts)
    coverage = sum(layout.coverage() for layout in layouts) / len(layouts)
    canvas = job.layout.canvas
    generated_at = job.pipeline.generation_canvas(canvas)
    data = {
        "path": str(path),
        "layouts": len(layouts),
        "boxes": boxes,
        "coverage": round(coverage, 4),
        "canvas": canvas,
        "generated_at": generated_at,
        **prompt_data,
    }
    lines = [f"{path}: {len(layouts)} layouts, {boxes} boxes, mean coverage {coverage:.1%}"]
    if generated_at != canvas:
        generated_width, generated_height = generated_at
        width, height = canvas
        lines.append(
            f"images are generated at {generated_width} x {generated_height} px and shrunk to "
            f"{width} x {height} px (pipeline.scale)"
        )
    return 0, data, lines
