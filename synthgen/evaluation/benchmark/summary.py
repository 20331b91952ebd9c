"""What the runs of a benchmark say together: means, intervals, and a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from synthgen.evaluation.benchmark import Row

FIGURES = ("ap", "ap50", "ap75")
CONFIDENCE = 0.95


def summary(rows: Sequence[Row], runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a benchmark.

    Args:
        runs: {"row", "seed", "ap", "ap50", "ap75"} of each training; the first row is what the others are held against.

    Returns:
        a row each: {"name", "share"}, and for ap, ap50, ap75 what `interval` returns; "ratio" likewise, of the AP over that of
        the first row with the same seed (None if one of those is 0).
    """
    values = {
        row.name: {name: [run[name] for run in runs if run["row"] == row.name] for name in FIGURES}
        for row in rows
    }
    base = values[rows[0].name]["ap"]
    told = []
    for row in rows:
        ratios = (
            [a / b for a, b in zip(values[row.name]["ap"], base, strict=True)]
            if min(base) > 0
            else None
        )
        figures = {name: interval(values[row.name][name]) for name in FIGURES}
        told.append(
            {"name": row.name, "share": row.share, **figures, "ratio": ratios and interval(ratios)}
        )
    return told


def interval(values: Sequence[float]) -> dict[str, Any]:
    """{"mean", "low", "high", "values"}: the 95 % interval of the mean over the seeds, from Student's t with n - 1 degrees.

    It says how far another set of seeds might lie (initial weights, order of the pictures), not other test pictures. With one
    seed low and high are None.
    """
    mean, n = float(np.mean(values)), len(values)
    half = (
        float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
        if n > 1
        else None
    )
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"mean": mean, "low": low, "high": high, "values": [float(v) for v in values]}


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as a table in Markdown, a line each."""
    head = ["trained on", "synthetic", "AP", "AP50", "AP75", f"AP / {rows[0]['name']}'s"]
    body = [
        [r["name"], f"{r['share']:.0%}", *(written(r[name]) for name in (*FIGURES, "ratio"))]
        for r in rows
    ]
    return [" | ".join(["", *cells, ""]).strip() for cells in (head, ["---"] * len(head), *body)]


def written(of: dict[str, Any] | None) -> str:
    """0.412 ± 0.031"""
    if of is None:
        return "-"
    return f"{of['mean']:.3f}" + ("" if of["low"] is None else f" ± {of['high'] - of['mean']:.3f}")
