"""The commands in the README and in docs/, and overrides that make each of them run in seconds."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synthgen.config import Job, load_job, load_training
from synthgen.training.base import TaskSpec

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The pages name the real checkpoint; the commands run in a folder with a tiny one of this name.
TINY = "stable-diffusion-v1-5/stable-diffusion-v1-5"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def find_blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page in a language; an empty text means no language."""
    return [match[2] for match in FENCED.finditer(page.read_text()) if match[1] == language]


def find_commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command of a page."""
    unmarked = [block for block in find_blocks(page, "") if block.startswith("synthgen ")]
    for block in [*find_blocks(page, "sh"), *unmarked]:
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def shrink_command(argv: list[str], overrides: list[str]) -> list[str]:
    """Return the arguments that make a command run in seconds.

    The command's job is first read and checked as it is written in the page. A command without a
    job gets no arguments.
    """
    if argv[0] == "train":
        return shrink_training(load_training(argv[1], overrides))
    if argv[0] == "benchmark":
        small = shrink_training(load_training("train-detector", overrides))
        return [*small, "--steps", "1", "--seeds", "1"]
    evaluates_job = argv[0] == "evaluate" and not argv[1].startswith("out/")
    if argv[0] in ("run", "preview", "plan") or evaluates_job:
        return shrink_job(load_job(argv[1], overrides))
    return []


def shrink_job(job: Job) -> list[str]:
    """Return overrides that make a job one of seconds and do not change its other keys."""
    changes: dict[str, Any] = {
        "images": min(2, -(-job.images // 8)),
        "workers": 0,
        "batch_size": 1,
        "output.shard_size": 1,
    }
    layout = job.layout.model_dump()
    categories = list(layout.get("objects") or ())
    if categories and layout["sampler"] != "perspective":  # its sizes are metres
        changes["layout.canvas"] = [128, 128]
        changes["layout.objects"] = dict.fromkeys(categories, 1)
        if "size" in layout:
            changes["layout.size"] = [32, 40]
        if "total" in layout:
            changes["layout.total"] = "null"
    pipeline = job.pipeline.model_dump()
    if "steps" in pipeline:
        changes["pipeline.steps"] = 2
    if "scale" in pipeline:
        changes["pipeline.scale"] = 1
    return [f"{key}={value}" for key, value in changes.items()]


def shrink_training(job: TaskSpec) -> list[str]:
    """Return overrides that train for one step on few scenes.

    The training starts from a tiny checkpoint, or from the output of an earlier command.
    """
    keys = job.model_dump()
    changes: dict[str, Any] = {
        "steps": 1,
        "batch_size": 2,
        "output.every": 1,
        "data.scenes": 2,
        "data.fresh": 0,
        "data.workers": 0,
        "data.side": 128,
    }
    if job.data.sizes:
        changes["data.sizes"] = [24, 40]
    small: dict[str, Any] = {
        "crop": 64,
        "windows": [32, 48],
        "rehearse": 1,
        "prior_images": 1,
        "prior_steps": 1,
        "text_dim": 16,
        "channels": [16] * (4 if job.task == "vae" else 2),
    }
    for key in ("init", "vae"):
        if keys.get(key) and not Path(keys[key]).is_dir():
            small[key] = TINY
    if job.task == "detector":
        small = {"init": "centernet-tiny" if keys["init"] else "null", "crop": 64}
    changes |= {key: value for key, value in small.items() if key in keys}
    return [f"{key}={value}" for key, value in changes.items()]
