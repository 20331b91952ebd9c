"""The rows of a benchmark as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthgen.evaluation.benchmark.summary import FIGURES
from synthgen.storage.local import replacing


def write_plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a PNG: AP, AP50 and AP75 over the share of synthetic scenes; means, intervals, and a dot for each seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ordered = sorted(rows, key=lambda row: row["share"])
    for k, name in enumerate(FIGURES):
        shares, means = [row["share"] for row in ordered], [row[name]["mean"] for row in ordered]
        half = [
            0.0 if row[name]["high"] is None else row[name]["high"] - row[name]["mean"]
            for row in ordered
        ]
        axes.errorbar(
            shares,
            means,
            half,
            marker="o",
            capsize=4,
            linewidth=1.5,
            color=f"C{k}",
            label=name.upper(),
        )
        for row in ordered:
            axes.scatter(
                [row["share"]] * len(row[name]["values"]),
                row[name]["values"],
                s=12,
                alpha=0.5,
                color=f"C{k}",
            )
        axes.axhline(means[0], linestyle=":", linewidth=1, color=f"C{k}")
    axes.set(
        xticks=[row["share"] for row in ordered],
        ylim=(0, 1),
        ylabel="on real pictures that nothing was trained on",
    )
    axes.set_xticklabels([f"{row['name']}\n{row['share']:.0%}" for row in ordered])
    axes.set(
        xlabel="trained on; share of synthetic scenes",
        title="Does it help? Mean of the seeds, 95 % interval, each seed",
    )
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
