"""Layouts like those of the user's own data: what was learnt from it is a small file."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from synthgen.formats.entries import Entry, read_text
from synthgen.geometry import box_centres, box_iou, box_sides
from synthgen.layouts.base import InfeasibleLayoutError, Layout, SamplerSpec
from synthgen.layouts.objects import Floats
from synthgen.layouts.placement import one_by_one
from synthgen.layouts.rows import read_any, source_hash

MAX_COUNTS, MAX_BOXES, EXAMPLES = 2000, 800, 16
MAX_DRAWS = 6
FORMAT = "synthgen-fit-1"


class Spec(SamplerSpec):
    """New layouts like those that `synthgen fit DATA -o MODEL.json` has seen: counts, categories, sizes and places."""

    sampler: Literal["fit"] = "fit"
    model: str = Field(description="file written by `synthgen fit`")
    bandwidth: float = Field(
        1.0,
        ge=0,
        le=5,
        description="smoothing in Silverman's bandwidths; 0: boxes as they were seen",
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
        return {"model_sha256": source_hash(self.model)}

    def examples(self) -> list[Layout]:
        size = np.array(self.canvas, float)
        return [
            Layout(
                *self.canvas,
                to_boxes(np.array(e["boxes"]).reshape(-1, 4), size).astype(np.float32),
                tuple(e["categories"]),
            )
            for e in read_model(self.model)["examples"]
        ]

    def check_feasible(self) -> None:
        """Raise InfeasibleLayoutError if the fullest layout that was seen finds no room."""
        counts = max(read_model(self.model)["counts"], key=lambda c: sum(c.values()))
        if (
            self.place([n for n, k in counts.items() for _ in range(k)], np.random.default_rng(0))
            is None
        ):
            raise InfeasibleLayoutError(
                f"objects: {sum(counts.values())} boxes like those of {self.model} find no room"
            )

    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """A new layout: the categories of one that was seen, and boxes from the density of each category's boxes.

        Raises:
            InfeasibleLayoutError: some box found no place in bounded work.
        """
        every = read_model(self.model)["counts"]
        counts = every[int(rng.integers(len(every)))]
        names = [name for name, k in counts.items() for _ in range(k)]
        for _ in range(MAX_DRAWS):
            boxes = self.place(names, rng)
            if boxes is not None:
                return Layout(*self.canvas, boxes.astype(np.float32), tuple(names))
        raise InfeasibleLayoutError(f"no room for {len(names)} boxes after {MAX_DRAWS} draws")

    def place(self, names: list[str], rng: np.random.Generator) -> Floats | None:
        """Boxes (n, 4) xyxy, px, that overlap no more than those that were seen; None if some found no place."""
        model, canvas = read_model(self.model), np.array(self.canvas, float)

        def propose(k: int, count: int) -> Floats:
            seen = model["arrays"][names[k]]
            return to_boxes(
                seen[rng.integers(len(seen), size=count)] + self.noise(seen, count, rng), canvas
            )

        return one_by_one(len(names), propose, model["max_iou"], 0.0)

    def noise(self, seen: Floats, count: int, rng: np.random.Generator) -> Floats:
        """Gaussian kernel of Silverman's bandwidth in 4 dimensions (Silverman 1986, equation 4.14)."""
        h = self.bandwidth * (4 / ((4 + 2) * len(seen))) ** (1 / (4 + 4))
        return rng.normal(0, 1, (count, 4)) * h * seen.std(0)


def to_boxes(features: Floats, canvas: Floats) -> Floats:
    """Boxes (n, 4) in px, on the canvas, at least 2 px large, from (cx, cy, log w, log h) in shares of the canvas."""
    sides = np.clip(np.exp(features[:, 2:]) * canvas, 2, canvas)
    low = np.clip(features[:, :2] * canvas - sides / 2, 0, canvas - sides)
    return np.concatenate([low, np.minimum(low + sides, canvas)], 1)


@lru_cache(maxsize=8)
def _load(path: str, changed: int) -> dict[str, Any]:
    model = json.loads(read_text(Path(path)))
    if not isinstance(model, dict) or model.get("format") != FORMAT:
        raise ValueError(f"{path!r} was not written by `synthgen fit`")
    return {**model, "arrays": {name: np.array(rows) for name, rows in model["boxes"].items()}}


def read_model(path: str) -> dict[str, Any]:
    """What `synthgen fit` wrote.

    Raises:
        OSError, ValueError: it is not there, or something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path!r}: no such file; write it with: synthgen fit DATA -o {path}")
    try:
        return _load(path, Path(path).stat().st_mtime_ns)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None


def learn(source: str, seed: int = 0) -> dict[str, Any]:
    """What a dataset's layouts are like: counts of each picture, boxes of each category, overlap, some examples.

    Boxes are (cx, cy, log width, log height) in shares of the picture. Of large datasets a random part is kept.

    Raises:
        ValueError: the source cannot be read.
    """
    entries, rng = list(read_any(source)), np.random.default_rng(seed)
    boxes: dict[str, list[list[float]]] = {}
    for entry in entries:
        for name, features in zip(entry.names, to_features(entry).tolist(), strict=True):
            boxes.setdefault(name, []).append(features)
    some = [entries[i] for i in rng.permutation(len(entries))[:MAX_COUNTS]]
    kept = {
        n: [rows[i] for i in rng.permutation(len(rows))[:MAX_BOXES]]
        for n, rows in sorted(boxes.items())
    }
    return {
        "format": FORMAT,
        "source": Path(source).name,
        "pictures": len(entries),
        "counts": [{n: e.names.count(n) for n in dict.fromkeys(e.names)} for e in some],
        "boxes": {n: np.round(rows, 5).tolist() for n, rows in kept.items()},
        "max_iou": round(float(np.quantile([largest_overlap(e) for e in some], 0.95)), 4),
        "examples": [
            {"boxes": np.round(to_features(e), 5).tolist(), "categories": list(e.names)}
            for e in some[:EXAMPLES]
        ],
    }


def to_features(entry: Entry) -> Floats:
    """(cx, cy, log w, log h) of an entry's boxes, in shares of the picture."""
    size = np.array([entry.width, entry.height], float)
    boxes = entry.boxes / np.tile(size, 2)
    return np.concatenate([box_centres(boxes), np.log(np.maximum(box_sides(boxes), 1e-4))], 1)


def largest_overlap(entry: Entry) -> float:
    """The largest IoU of two boxes of one picture."""
    overlap = box_iou(entry.boxes, entry.boxes)
    np.fill_diagonal(overlap, 0)
    return float(overlap.max(initial=0))
