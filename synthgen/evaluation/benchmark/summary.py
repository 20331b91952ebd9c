"""The summary of a benchmark's runs: means, intervals, and a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from synthgen.evaluation.benchmark import Row

FIGURES = ("ap", "ap50", "ap75")
CONFIDENCE = 0.95


def build_summary(rows: Sequence[Row], runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results of each row.

    Args:
        rows: the first row is what the others are compared with.
        runs: {"row", "seed", "ap", "ap50", "ap75"} of each training.

    Returns:
        {"name", "share"} of each row, and for ap, ap50, ap75 what `compute_interval` returns.
        "ratio" is the interval of the AP over that of the first row with the same seed, or None if
        one of those is 0.
    """
    base = _values(runs, rows[0], "ap")
    results = []
    for row in rows:
        result: dict[str, Any] = {"name": row.name, "share": row.share}
        for figure in FIGURES:
            result[figure] = compute_interval(_values(runs, row, figure))
        result["ratio"] = None
        if min(base) > 0:
            ratios = [a / b for a, b in zip(_values(runs, row, "ap"), base, strict=True)]
            result["ratio"] = compute_interval(ratios)
        results.append(result)
    return results


def _values(runs: Sequence[dict[str, Any]], row: Row, figure: str) -> list[float]:
    return [run[figure] for run in runs if run["row"] == row.name]


def compute_interval(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean over the seeds with its 95 % interval, from Student's t with n - 1 degrees.

    The interval describes other seeds (initial weights, order of the images), not other test
    images.

    Returns:
        {"mean", "low", "high", "values"}; with one seed low and high are None.
    """
    mean = float(np.mean(values))
    n = len(values)
    low = None
    high = None
    if n > 1:
        quantile = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)
        half = float(quantile * np.std(values, ddof=1) / np.sqrt(n))
        low = mean - half
        high = mean + half
    return {"mean": mean, "low": low, "high": high, "values": [float(v) for v in values]}


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the results as the lines of a Markdown table.

    Args:
        rows: what `build_summary` returns.
    """
    head = ["trained on", "synthetic", "AP", "AP50", "AP75", f"AP / {rows[0]['name']}'s"]
    lines = [_table_line(head), _table_line(["---"] * len(head))]
    for row in rows:
        cells = [row["name"], f"{row['share']:.0%}"]
        cells += [format_interval(row[name]) for name in (*FIGURES, "ratio")]
        lines.append(_table_line(cells))
    return lines


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def format_interval(values: dict[str, Any] | None) -> str:
    """Return an interval as "0.412 ± 0.031", a single value as "0.412", and None as "-"."""
    if values is None:
        return "-"
    mean = f"{values['mean']:.3f}"
    if values["low"] is None:
        return mean
    return f"{mean} ± {values['high'] - values['mean']:.3f}"
