"""The commands that stand in the README and in docs/, and how each is made small."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synthgen.config import Job, load_job, load_training
from synthgen.training.base import TaskSpec

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TINY = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # in the place where the commands run, and how the pages name the real one
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return [match[2] for match in FENCED.finditer(page.read_text()) if match[1] == language]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command of a page."""
    for block in [*blocks(page, "sh"), *(b for b in blocks(page, "") if b.startswith("synthgen "))]:
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def smaller(job: Job) -> list[str]:
    """Overrides that make a job one of seconds, and leave all else as it is."""
    changes: dict[str, Any] = {
        "images": min(2, -(-job.images // 8)),
        "workers": 0,
        "batch_size": 1,
        "output.shard_size": 1,
    }
    layout, pipeline = job.layout.model_dump(), job.pipeline.model_dump()
    if (names := list(layout.get("objects") or ())) and layout[
        "sampler"
    ] != "perspective":  # whose sizes are metres
        changes |= {"layout.canvas": [128, 128], "layout.objects": dict.fromkeys(names, 1)}
        changes |= {"layout.size": [32, 40]} if "size" in layout else {}
        changes |= {"layout.total": "null"} if "total" in layout else {}
    changes |= {"pipeline.steps": 2} if "steps" in pipeline else {}
    changes |= {"pipeline.scale": 1} if "scale" in pipeline else {}
    return [f"{key}={value}" for key, value in changes.items()]


def smaller_training(job: TaskSpec) -> list[str]:
    """The same for a training job: one step on little, from a tiny checkpoint or from what an earlier command made."""
    given = job.model_dump()
    changes: dict[str, Any] = {"steps": 1, "batch_size": 2, "output.every": 1}
    changes |= {"data.scenes": 2, "data.fresh": 0, "data.workers": 0, "data.side": 128}
    changes |= {"data.sizes": [24, 40]} if job.data.sizes else {}
    small: dict[str, Any] = {
        "crop": 64,
        "windows": [32, 48],
        "rehearse": 1,
        "prior_images": 1,
        "prior_steps": 1,
        "text_dim": 16,
    }
    small |= {
        key: TINY for key in ("init", "vae") if given.get(key) and not Path(given[key]).is_dir()
    }
    small["channels"] = [16] * (4 if job.task == "vae" else 2)
    if job.task == "detector":
        small = {"init": "centernet-tiny" if given["init"] else "null", "crop": 64}
    changes |= {key: value for key, value in small.items() if key in given}
    return [f"{key}={value}" for key, value in changes.items()]


def load(argv: list[str], overrides: list[str]) -> list[str]:
    """The command's job, read and checked as it is written: what makes it smaller; nothing of a command without a job."""
    if argv[0] == "train":
        return smaller_training(load_training(argv[1], overrides))
    if argv[0] == "benchmark":
        return [
            *smaller_training(load_training("train-detector", overrides)),
            "--steps",
            "1",
            "--seeds",
            "1",
        ]
    if argv[0] in ("run", "preview", "plan") or (argv[0] == "evaluate" and argv[1][:4] != "out/"):
        return smaller(load_job(argv[1], overrides))
    return []
