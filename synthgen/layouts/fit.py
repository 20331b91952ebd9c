"""A sampler of layouts like those of the user's own data, from a small file of statistics."""

import json
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from synthgen.formats.entries import Entry, read_text
from synthgen.geometry import box_centres, box_iou, box_sides
from synthgen.layouts.base import InfeasibleLayoutError, Layout, SamplerSpec
from synthgen.layouts.objects import Floats
from synthgen.layouts.placement import place_one_by_one
from synthgen.layouts.rows import hash_source, read_any

MAX_COUNTS = 2000
MAX_BOXES = 800
MAX_EXAMPLES = 16
OVERLAP_QUANTILE = 0.95
MAX_DRAWS = 6
FORMAT = "synthgen-fit-1"


class Spec(SamplerSpec):
    """New layouts with the counts, categories, sizes and positions of a model of `synthgen fit`."""

    sampler: Literal["fit"] = "fit"
    model: str = Field(description="File written by `synthgen fit DATA -o MODEL.json`.")
    bandwidth: float = Field(
        1.0,
        ge=0,
        le=5,
        description="Smoothing, in Silverman's bandwidths; 0: only boxes that are in the data.",
    )

    @model_validator(mode="after")
    def can_be_read(self) -> "Spec":
        try:
            read_model(self.model)
        except (OSError, ValueError) as error:
            raise ValueError(f"model: {error}") from None
        return self

    def names(self) -> dict[str, bool]:
        return dict.fromkeys(read_model(self.model)["boxes"], True)

    def fingerprint(self) -> dict[str, Any]:
        return {"model_sha256": hash_source(self.model)}

    def examples(self) -> list[Layout]:
        canvas = np.array(self.canvas, float)
        layouts = []
        for example in read_model(self.model)["examples"]:
            features = np.array(example["boxes"]).reshape(-1, 4)
            boxes = convert_features_to_boxes(features, canvas).astype(np.float32)
            layouts.append(Layout(*self.canvas, boxes, tuple(example["categories"])))
        return layouts

    def check_feasible(self) -> None:
        """Raise InfeasibleLayoutError if the counts with the most boxes do not fit the canvas."""
        all_counts = read_model(self.model)["counts"]
        largest = max(all_counts, key=lambda counts: sum(counts.values()))
        names = list(Counter(largest).elements())
        if self.place(names, np.random.default_rng(0)) is None:
            raise InfeasibleLayoutError(
                f"objects: {len(names)} boxes like those of {self.model} do not fit the canvas"
            )

    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """Return a new layout.

        Its categories are those of a random image of the data. Each box is sampled from the density
        of its category's boxes.

        Raises:
            InfeasibleLayoutError: no placement was found in a bounded number of attempts.
        """
        all_counts = read_model(self.model)["counts"]
        counts = all_counts[int(rng.integers(len(all_counts)))]
        names = list(Counter(counts).elements())
        for _ in range(MAX_DRAWS):
            boxes = self.place(names, rng)
            if boxes is not None:
                return Layout(*self.canvas, boxes.astype(np.float32), tuple(names))
        raise InfeasibleLayoutError(f"no room for {len(names)} boxes after {MAX_DRAWS} attempts")

    def place(self, names: list[str], rng: np.random.Generator) -> Floats | None:
        """Return random boxes (n, 4) xyxy in px that overlap no more than those of the data.

        The result is None if a box found no position.
        """
        model = read_model(self.model)
        canvas = np.array(self.canvas, float)

        def propose(k: int, count: int) -> Floats:
            features = model["arrays"][names[k]]
            sampled = features[rng.integers(len(features), size=count)]
            return convert_features_to_boxes(
                sampled + self.sample_noise(features, count, rng), canvas
            )

        return place_one_by_one(len(names), propose, model["max_iou"], 0.0)

    def sample_noise(self, features: Floats, count: int, rng: np.random.Generator) -> Floats:
        """Return samples (count, 4) of a Gaussian kernel with Silverman's bandwidth.

        The bandwidth is that for 4 dimensions (Silverman 1986, equation 4.14).
        """
        h = self.bandwidth * (4 / ((4 + 2) * len(features))) ** (1 / (4 + 4))
        return rng.normal(0, 1, (count, 4)) * h * features.std(0)


def convert_features_to_boxes(features: Floats, canvas: Floats) -> Floats:
    """Return boxes (n, 4) xyxy in px, on the canvas and at least 2 px wide and high.

    Args:
        features: (n, 4) cx, cy, log width, log height, relative to the canvas.
        canvas: (2,) width and height, px.
    """
    sides = np.clip(np.exp(features[:, 2:]) * canvas, 2, canvas)
    low = np.clip(features[:, :2] * canvas - sides / 2, 0, canvas - sides)
    return np.concatenate([low, np.minimum(low + sides, canvas)], 1)


def read_model(path: str) -> dict[str, Any]:
    """Return a model of `synthgen fit`, with its boxes also as arrays by category ("arrays").

    Raises:
        OSError, ValueError: the file cannot be read, or is not such a model.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path!r}: no such file; write it with: synthgen fit DATA -o {path}")
    try:
        return _load_model(path, Path(path).stat().st_mtime_ns)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None


@lru_cache(maxsize=8)
def _load_model(path: str, modified: int) -> dict[str, Any]:
    """Return a model; `modified` is a key of the cache only."""
    model = json.loads(read_text(Path(path)))
    if not isinstance(model, dict) or model.get("format") != FORMAT:
        raise ValueError(f"{path!r} was not written by `synthgen fit`")
    arrays = {name: np.array(rows) for name, rows in model["boxes"].items()}
    return {**model, "arrays": arrays}


def fit_model(source: str, seed: int = 0) -> dict[str, Any]:
    """Return a model of a dataset's layouts, as plain data.

    It has the counts of each image, the boxes of each category, the usual overlap, and some
    examples. Boxes are (cx, cy, log width, log height) relative to the image. Of large datasets
    it has a random subset.

    Raises:
        ValueError: the source cannot be read.
    """
    entries = list(read_any(source))
    rng = np.random.default_rng(seed)
    boxes: dict[str, list[list[float]]] = {}
    for entry in entries:
        for name, features in zip(
            entry.names, convert_entry_to_features(entry).tolist(), strict=True
        ):
            boxes.setdefault(name, []).append(features)
    subset = [entries[i] for i in rng.permutation(len(entries))[:MAX_COUNTS]]
    boxes_subset = {}
    for name, rows in sorted(boxes.items()):
        chosen = rng.permutation(len(rows))[:MAX_BOXES]
        boxes_subset[name] = np.round([rows[i] for i in chosen], 5).tolist()
    examples = []
    for entry in subset[:MAX_EXAMPLES]:
        features = np.round(convert_entry_to_features(entry), 5).tolist()
        examples.append({"boxes": features, "categories": list(entry.names)})
    overlaps = [compute_largest_overlap(entry) for entry in subset]
    return {
        "format": FORMAT,
        "source": Path(source).name,
        "pictures": len(entries),
        "counts": [dict(Counter(entry.names)) for entry in subset],
        "boxes": boxes_subset,
        "max_iou": round(float(np.quantile(overlaps, OVERLAP_QUANTILE)), 4),
        "examples": examples,
    }


def convert_entry_to_features(entry: Entry) -> Floats:
    """Return (n, 4) cx, cy, log width, log height of an entry's boxes, relative to the image."""
    size = np.array([entry.width, entry.height], float)
    boxes = entry.boxes / np.tile(size, 2)
    return np.concatenate([box_centres(boxes), np.log(np.maximum(box_sides(boxes), 1e-4))], 1)


def compute_largest_overlap(entry: Entry) -> float:
    """Return the largest IoU of two boxes of an image."""
    overlap = box_iou(entry.boxes, entry.boxes)
    np.fill_diagonal(overlap, 0)
    return float(overlap.max(initial=0))
