"""The plot of the loss."""

from pathlib import Path

import numpy as np

from synthgen.storage.local import replace_atomically

SMOOTHED_STEPS = 100


def write_loss_plot(path: Path, losses: list[float], title: str) -> None:
    """Write a PNG of the loss of each step, and of its moving average over SMOOTHED_STEPS steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, linewidth=0.5, alpha=0.35, label="loss")
    width = min(SMOOTHED_STEPS, len(losses))
    smooth = np.convolve(losses, np.full(width, 1 / width), "valid")
    axes.plot(steps[width - 1 :], smooth, linewidth=1.5, label=f"mean of {width} steps")
    axes.set(
        xlabel="step",
        ylabel="loss",
        title=title,
        ylim=(0.8 * min(losses), 1.2 * float(np.percentile(losses, 98))),
    )
    axes.legend()
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
