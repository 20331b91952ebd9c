"""The configuration files of `generate_grid_from_json.py` (Mixture of Diffusers' repository) as jobs of ours."""

from pathlib import Path
from typing import Any

from synthgen.yamlfile import Document

KEYS = {
    "gc": "guidance_scale",
    "gc_tiles": "guidance_scale_tiles",
}  # what is called otherwise there
DEFAULTS = {"tile_height": 512, "tile_width": 512, "tile_row_overlap": 256, "tile_col_overlap": 256}


def as_job(document: Document, name: str) -> Document | None:
    """Return the job that such a file stands for, one picture without boxes; None of a file without a prompt."""
    data, stem = document.data, Path(name).stem
    if "prompt" not in data:
        return None
    pipeline = {
        "method": "tiling",
        **{KEYS.get(key, key): value for key, value in data.items() if value is not None},
    }
    places = dict(document.places)
    places.update(
        {
            ("pipeline", KEYS.get(str(p[0]), p[0]), *p[1:]): at
            for p, at in document.places.items()
            if p
        }
    )
    places.update(
        {("pipeline",): document.place(()), ("layout", "canvas"): document.place(("prompt",))}
    )
    job = {
        "version": 1,
        "name": stem,
        "images": 1,
        "seed": data.get("seed") or 0,
        "layout": {"sampler": "scatter", "canvas": canvas(data), "objects": {}},
        "pipeline": pipeline,
        "output": {"path": f"out/{stem}", "image_format": "png", "shard_size": 1},
        "batch_size": 1,
    }
    return Document(job, places, document.problems)


def canvas(data: dict[str, Any]) -> list[int]:
    """Width and height of the picture; of a file whose keys are wrong some size, for its errors are told elsewhere."""
    prompt, tile = (
        data["prompt"],
        {**DEFAULTS, **{k: data[k] for k in DEFAULTS if isinstance(data.get(k), int)}},
    )
    rows = len(prompt) if isinstance(prompt, list) else 1
    columns = (
        len(prompt[0]) if isinstance(prompt, list) and prompt and isinstance(prompt[0], list) else 1
    )
    width = tile["tile_width"] + (columns - 1) * (tile["tile_width"] - tile["tile_col_overlap"])
    return [
        width,
        tile["tile_height"] + (rows - 1) * (tile["tile_height"] - tile["tile_row_overlap"]),
    ]
