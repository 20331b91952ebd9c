"""The plot of a benchmark's results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthgen.evaluation.benchmark.summary import FIGURES
from synthgen.storage.local import replace_atomically


def write_plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a PNG of AP, AP50 and AP75 over the share of synthetic scenes.

    It shows means with their intervals, and a dot for each seed.

    Args:
        rows: what `build_summary` returns.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ordered = sorted(rows, key=lambda row: row["share"])
    shares = [row["share"] for row in ordered]
    for k, name in enumerate(FIGURES):
        colour = f"C{k}"
        means = []
        half_widths = []
        for row in ordered:
            mean = row[name]["mean"]
            high = row[name]["high"]
            means.append(mean)
            half_widths.append(0.0 if high is None else high - mean)
        axes.errorbar(
            shares,
            means,
            half_widths,
            marker="o",
            capsize=4,
            linewidth=1.5,
            color=colour,
            label=name.upper(),
        )
        for row in ordered:
            values = row[name]["values"]
            axes.scatter([row["share"]] * len(values), values, s=12, alpha=0.5, color=colour)
        axes.axhline(means[0], linestyle=":", linewidth=1, color=colour)
    axes.set(
        xticks=shares,
        ylim=(0, 1),
        ylabel="on real pictures that nothing was trained on",
    )
    axes.set_xticklabels([f"{row['name']}\n{row['share']:.0%}" for row in ordered])
    axes.set(
        xlabel="trained on; share of synthetic scenes",
        title="Does it help? Mean of the seeds, 95 % interval, each seed",
    )
    axes.legend()
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
