"""Configuration files of Mixture of Diffusers' `generate_grid_from_json.py`, read as jobs."""

from pathlib import Path
from typing import Any

from synthgen.yamlfile import Document

KEYS = {"gc": "guidance_scale", "gc_tiles": "guidance_scale_tiles"}  # their names for our keys
DEFAULTS = {"tile_height": 512, "tile_width": 512, "tile_row_overlap": 256, "tile_col_overlap": 256}


def read_grid_job(document: Document, name: str) -> Document | None:
    """Return the job that such a file stands for, one image without boxes.

    Args:
        document: the content of the file.
        name: name of the file.

    Returns:
        None if the file has no prompt.
    """
    data = document.data
    if "prompt" not in data:
        return None
    stem = Path(name).stem
    pipeline: dict[str, Any] = {"method": "tiling"}
    for key, value in data.items():
        if value is not None:
            pipeline[KEYS.get(key, key)] = value
    places = dict(document.places)
    for path, place in document.places.items():
        if path:
            key, *inner_path = path
            places["pipeline", KEYS.get(str(key), key), *inner_path] = place
    places["pipeline",] = document.place(())
    places["layout", "canvas"] = document.place(("prompt",))
    job = {
        "version": 1,
        "name": stem,
        "images": 1,
        "seed": data.get("seed") or 0,
        "layout": {"sampler": "scatter", "canvas": measure_canvas(data), "objects": {}},
        "pipeline": pipeline,
        "output": {"path": f"out/{stem}", "image_format": "png", "shard_size": 1},
        "batch_size": 1,
    }
    return Document(job, places, document.problems)


def measure_canvas(data: dict[str, Any]) -> list[int]:
    """Return width and height in px of the image that a file describes.

    If a key has a wrong value, its default is used, because validation reports the key later.
    """
    tile = dict(DEFAULTS)
    for key in DEFAULTS:
        if isinstance(data.get(key), int):
            tile[key] = data[key]
    rows = 1
    columns = 1
    prompt = data["prompt"]
    if isinstance(prompt, list):
        rows = len(prompt)
        if prompt and isinstance(prompt[0], list):
            columns = len(prompt[0])
    width = tile["tile_width"] + (columns - 1) * (tile["tile_width"] - tile["tile_col_overlap"])
    height = tile["tile_height"] + (rows - 1) * (tile["tile_height"] - tile["tile_row_overlap"])
    return [width, height]
