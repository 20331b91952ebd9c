#!/usr/bin/env python3
"""How fast and how true are the layout samplers?

usage: benchmarks/layouts.py [--json]
One run on one core; medians of several layouts. Prints two tables: milliseconds a layout, and what the layouts are like.
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
REJECTION_TRIES = 200


def build(**recipe: Any) -> Any:
    return registry.spec_class("sampler", recipe["sampler"]).model_validate(recipe)


def scatter(n: int, coverage: float, **more: Any) -> Any:
    """Disjoint boxes that cover about `coverage` of 1024 x 1024."""
    side = float(np.sqrt(coverage * 1024**2 / n / 0.78))
    return build(
        sampler="scatter",
        objects={"dog": n},
        size=[0.8 * side, 1.2 * side],
        gap=0.05 * side,
        **more,
    )


def milliseconds(spec: Any, repeats: int = REPEATS) -> float:
    spec.sample(np.random.default_rng(0))
    times = []
    for k in range(repeats):
        rng = np.random.default_rng(k)
        began = time.perf_counter()
        spec.sample(rng)
        times.append(time.perf_counter() - began)
    return 1000 * median(times)


def rejection(spec: Any, rng: np.random.Generator) -> Layout | None:
    """Vectorised rejection sampling: REJECTION_TRIES places at once for each box in turn, the first free one is taken."""
    names = spec.draw_names(rng)
    sides, placed = spec.draw_sides(names, rng), np.zeros((len(names), 4))
    for k, side in enumerate(sides):
        low = np.floor(rng.random((REJECTION_TRIES, 2)) * (np.array(spec.canvas) - side))
        high = low + side
        gap = spec.gap
        hit = (
            (
                (low[:, None] < placed[None, :k, 2:] + gap)
                & (high[:, None] > placed[None, :k, :2] - gap)
            )
            .all(2)
            .any(1)
        )
        free = np.nonzero(~hit)[0]
        if not len(free):
            return None
        placed[k] = [*low[free[0]], *high[free[0]]]
    width, height = spec.canvas
    return Layout(width, height, placed.astype(np.float32), tuple(names))


def rejection_row(coverage: float) -> dict[str, float]:
    spec = scatter(100, coverage)
    times, given_up = [], 0
    for k in range(REPEATS):
        rng = np.random.default_rng(k)
        began = time.perf_counter()
        given_up += rejection(spec, rng) is None
        times.append(1000 * (time.perf_counter() - began))
    return {
        "rejection ms": median(times),
        "ours ms": milliseconds(spec),
        "rejection gave up": given_up / REPEATS,
    }


def size_p_value(distribution: str) -> float:
    """Kolmogorov-Smirnov p between asked and obtained longer sides of 2,000 placed boxes."""
    spec = build(
        sampler="scatter",
        objects={"dog": 50},
        size={"range": [30, 110], "distribution": distribution},
        gap=4,
    )
    boxes = np.concatenate([spec.sample(np.random.default_rng((7, k))).boxes for k in range(40)])
    longest = (boxes[:, 2:] - boxes[:, :2]).max(1) + np.random.default_rng(0).random(
        len(boxes)
    )  # sides are whole px
    asked = stats.uniform(30, 80) if distribution == "uniform" else stats.loguniform(30, 110)
    return float(stats.kstest(longest, asked.cdf).pvalue)


def border_share() -> float:
    """Share of boxes in the outermost tenth of their range on either side, over what is due: 1 is no bias."""
    spec = scatter(40, 0.2)
    u = []
    for k in range(200):
        boxes = spec.sample(np.random.default_rng(k)).boxes
        u.append(boxes[:, :2] / (1024 - (boxes[:, 2:] - boxes[:, :2])))
    all_u = np.concatenate(u)
    return float(((all_u < 0.1) | (all_u > 0.9)).mean() / 0.2)


def memory_growth(layouts: int = 20_000) -> float:
    """KiB that stay allocated after many layouts."""
    spec = scatter(10, 0.2)
    tracemalloc.start()
    for k in range(200):
        spec.sample(np.random.default_rng(k))
    before = tracemalloc.get_traced_memory()[0]
    for k in range(layouts):
        spec.sample(np.random.default_rng(k))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return grown / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    hundred = {"dog": 100}
    speed = {
        "scatter, 100 boxes, 40%": milliseconds(scatter(100, 0.4)),
        "scatter, blue noise, 100 boxes, 40%": milliseconds(scatter(100, 0.4, spread="blue-noise")),
        "grid, 100 boxes": milliseconds(build(sampler="grid", objects=hundred)),
        "pack, 100 boxes, 85%": milliseconds(
            build(sampler="pack", objects=hundred, coverage=0.85, aspect=[0.5, 2])
        ),
        "perspective, 40 boxes": milliseconds(build(sampler="perspective", objects={"dog": 40})),
        "crowd, 60 boxes": milliseconds(build(sampler="crowd", objects={"dog": 60})),
        **{
            f"scatter, {n} boxes, 40%": milliseconds(scatter(n, 0.4), 5)
            for n in (10, 300, 1000, 2000)
        },
    }
    truth = {
        **{f"rejection against ours, {c:.0%}": rejection_row(c) for c in (0.2, 0.3, 0.4, 0.5, 0.6)},
        "sizes, uniform": {"KS p": size_p_value("uniform")},
        "sizes, log-uniform": {"KS p": size_p_value("log-uniform")},
        "border": {"share over due": border_share()},
        "memory after 20,000 layouts": {"KiB": memory_growth()},
    }
    if args.json:
        print(json.dumps({"milliseconds": speed, "truth": truth}, indent=1))
        return
    print("| sampler | ms a layout |\n| --- | --- |")
    print(*(f"| {name} | {value:.2f} |" for name, value in speed.items()), sep="\n")
    print("\n| what | measured |\n| --- | --- |")
    print(
        *(
            f"| {name} | {', '.join(f'{k} {v:.3g}' for k, v in row.items())} |"
            for name, row in truth.items()
        ),
        sep="\n",
    )


if __name__ == "__main__":
    main()
