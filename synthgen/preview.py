"""A picture of sampled layouts, and of their sizes and coverage, before anything is painted."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from synthgen.layouts import Layout
from synthgen.shards.card import contact_sheet, draw_boxes

TILE = 320
PLOT = (480, 200)
INK, PAPER = "#e8e8e8", "#202020"


def preview_sheet(layouts: list[Layout]) -> Image.Image:
    """The layouts side by side, and below them histograms of box sizes, aspects and coverage."""
    columns = min(4, len(layouts))
    sheet = contact_sheet([draw_layout(layout) for layout in layouts], columns, TILE)
    sides = np.concatenate([layout.boxes[:, 2:] - layout.boxes[:, :2] for layout in layouts])
    plots = [
        histogram(sides.max(1), "longer side, px"),
        histogram(sides[:, 0] / np.maximum(sides[:, 1], 1e-6), "width / height"),
        histogram(np.array([100 * layout.coverage() for layout in layouts]), "coverage, % of the canvas"),
    ]
    width = max(sheet.width, PLOT[0] * len(plots))
    whole = Image.new("RGB", (width, sheet.height + PLOT[1]), PAPER)
    whole.paste(sheet, (0, 0))
    for i, plot in enumerate(plots):
        whole.paste(plot, (i * PLOT[0], sheet.height))
    return whole


def draw_layout(layout: Layout) -> Image.Image:
    """The boxes of one layout on dark ground, in a colour for each category."""
    boxes = np.concatenate([layout.boxes[:, :2], layout.boxes[:, 2:] - layout.boxes[:, :2]], 1)
    ground = Image.new("RGB", (layout.width, layout.height), "#303030")
    return draw_boxes(ground, boxes.tolist(), layout.categories, (TILE - 6) / max(ground.size))


def histogram(values: NDArray[np.floating], title: str, bins: int = 16) -> Image.Image:
    """Bars of a histogram with its range below."""
    plot = Image.new("RGB", PLOT, PAPER)
    draw = ImageDraw.Draw(plot)
    draw.text((10, 6), title, fill=INK)
    if len(values) == 0:
        return plot
    counts, edges = np.histogram(values, bins)
    step, height = (PLOT[0] - 20) / bins, PLOT[1] - 56
    for i, count in enumerate(counts):
        top = 30 + height * (1 - count / counts.max())
        draw.rectangle((10 + i * step, top, 10 + (i + 0.85) * step, 30 + height), fill="#0a84ff")
    draw.text((10, PLOT[1] - 20), f"{edges[0]:.3g}", fill=INK)
    draw.text((PLOT[0] - 60, PLOT[1] - 20), f"{edges[-1]:.3g}", fill=INK)
    return plot


def write_preview(path: Path, layouts: list[Layout]) -> None:
    """Save the sheet as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    preview_sheet(layouts).save(path, "PNG")
