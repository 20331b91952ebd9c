#!/usr/bin/env python3
"""Measure the speed and the distributions of the layout samplers.

usage: benchmarks/layouts.py [--json]
The script runs on one core and prints two tables: the median milliseconds per layout, and figures
of the layouts.
"""

import argparse
import json
import time
import tracemalloc
from statistics import median
from typing import Any

import numpy as np
from scipy import stats

from synthgen import registry
from synthgen.layouts.base import Layout

REPEATS = 15
REJECTION_ATTEMPTS = 200


def build(**recipe: Any) -> Any:
    """Return the sampler of a recipe."""
    return registry.load_spec_class("sampler", recipe["sampler"]).model_validate(recipe)


def build_scatter(count: int, coverage: float, **overrides: Any) -> Any:
    """Return a sampler of disjoint boxes that cover about `coverage` of 1024 x 1024 px."""
    side = float(np.sqrt(coverage * 1024**2 / count / 0.78))
    return build(
        sampler="scatter",
        objects={"dog": count},
        size=[0.8 * side, 1.2 * side],
        gap=0.05 * side,
        **overrides,
    )


def measure_milliseconds(spec: Any, repeats: int = REPEATS) -> float:
    """Return the median milliseconds per layout, after one layout that is not timed."""
    spec.sample(np.random.default_rng(0))
    times = []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        start = time.perf_counter()
        spec.sample(rng)
        times.append(time.perf_counter() - start)
    return 1000 * median(times)


def sample_by_rejection(spec: Any, rng: np.random.Generator) -> Layout | None:
    """Return a layout of vectorised rejection sampling, or None if it fails.

    For one box after another, REJECTION_ATTEMPTS positions are sampled together, and the first free
    one is used.
    """
    names = spec.sample_categories(rng)
    sides = spec.sample_sides(names, rng)
    placed = np.zeros((len(names), 4))
    for number, side in enumerate(sides):
        low = np.floor(rng.random((REJECTION_ATTEMPTS, 2)) * (np.array(spec.canvas) - side))
        high = low + side
        below = low[:, None] < placed[None, :number, 2:] + spec.gap
        above = high[:, None] > placed[None, :number, :2] - spec.gap
        overlaps = (below & above).all(2).any(1)
        free = np.nonzero(~overlaps)[0]
        if not len(free):
            return None
        placed[number] = [*low[free[0]], *high[free[0]]]
    width, height = spec.canvas
    return Layout(width, height, placed.astype(np.float32), tuple(names))


def compare_with_rejection(coverage: float) -> dict[str, float]:
    """Return the milliseconds of rejection sampling and of `scatter`, and the failed share."""
    spec = build_scatter(100, coverage)
    times = []
    failures = 0
    for seed in range(REPEATS):
        rng = np.random.default_rng(seed)
        start = time.perf_counter()
        failures += sample_by_rejection(spec, rng) is None
        times.append(1000 * (time.perf_counter() - start))
    return {
        "rejection ms": median(times),
        "ours ms": measure_milliseconds(spec),
        "rejection gave up": failures / REPEATS,
    }


def measure_size_p_value(distribution: str) -> float:
    """Return the Kolmogorov-Smirnov p-value of the longer sides of 2,000 placed boxes."""
    spec = build(
        sampler="scatter",
        objects={"dog": 50},
        size={"range": [30, 110], "distribution": distribution},
        gap=4,
    )
    layouts = [spec.sample(np.random.default_rng((7, number))) for number in range(40)]
    boxes = np.concatenate([layout.boxes for layout in layouts])
    longest = (boxes[:, 2:] - boxes[:, :2]).max(1)
    # Sides are whole px. The fraction makes them continuous.
    longest = longest + np.random.default_rng(0).random(len(boxes))
    expected = stats.uniform(30, 80) if distribution == "uniform" else stats.loguniform(30, 110)
    return float(stats.kstest(longest, expected.cdf).pvalue)


def measure_border_share() -> float:
    """Return the share of boxes near the borders, relative to that of uniform positions.

    A position is near a border if it is in the outer tenth of its range. A value of 1 is unbiased.
    """
    spec = build_scatter(40, 0.2)
    positions = []
    for seed in range(200):
        boxes = spec.sample(np.random.default_rng(seed)).boxes
        positions.append(boxes[:, :2] / (1024 - (boxes[:, 2:] - boxes[:, :2])))
    shares = np.concatenate(positions)
    return float(((shares < 0.1) | (shares > 0.9)).mean() / 0.2)


def measure_memory_growth(layouts: int = 20_000) -> float:
    """Return the KiB that stay allocated after many layouts."""
    spec = build_scatter(10, 0.2)
    tracemalloc.start()
    for seed in range(200):
        spec.sample(np.random.default_rng(seed))
    before = tracemalloc.get_traced_memory()[0]
    for seed in range(layouts):
        spec.sample(np.random.default_rng(seed))
    growth = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return growth / 1024


def measure_speed() -> dict[str, float]:
    """Return the milliseconds per layout of each sampler."""
    hundred = {"dog": 100}
    pack = build(sampler="pack", objects=hundred, coverage=0.85, aspect=[0.5, 2])
    samplers = {
        "scatter, 100 boxes, 40%": build_scatter(100, 0.4),
        "scatter, blue noise, 100 boxes, 40%": build_scatter(100, 0.4, spread="blue-noise"),
        "grid, 100 boxes": build(sampler="grid", objects=hundred),
        "pack, 100 boxes, 85%": pack,
        "perspective, 40 boxes": build(sampler="perspective", objects={"dog": 40}),
        "crowd, 60 boxes": build(sampler="crowd", objects={"dog": 60}),
    }
    speed = {name: measure_milliseconds(spec) for name, spec in samplers.items()}
    for count in (10, 300, 1000, 2000):
        spec = build_scatter(count, 0.4)
        speed[f"scatter, {count} boxes, 40%"] = measure_milliseconds(spec, 5)
    return speed


def measure_layouts() -> dict[str, dict[str, float]]:
    """Return the rows of the second table."""
    rows = {}
    for coverage in (0.2, 0.3, 0.4, 0.5, 0.6):
        rows[f"rejection against ours, {coverage:.0%}"] = compare_with_rejection(coverage)
    rows["sizes, uniform"] = {"KS p": measure_size_p_value("uniform")}
    rows["sizes, log-uniform"] = {"KS p": measure_size_p_value("log-uniform")}
    rows["border"] = {"share over due": measure_border_share()}
    rows["memory after 20,000 layouts"] = {"KiB": measure_memory_growth()}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    speed = measure_speed()
    truth = measure_layouts()
    if args.json:
        print(json.dumps({"milliseconds": speed, "truth": truth}, indent=1))
        return
    print("| sampler | ms a layout |\n| --- | --- |")
    for name, value in speed.items():
        print(f"| {name} | {value:.2f} |")
    print("\n| what | measured |\n| --- | --- |")
    for name, figures in truth.items():
        cell = ", ".join(f"{column} {value:.3g}" for column, value in figures.items())
        print(f"| {name} | {cell} |")


if __name__ == "__main__":
    main()
