"""A picture of sampled layouts, and of their places, sizes and coverage, before anything is painted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from synthgen.dataset.card import COLOURS, contact_sheet, draw_boxes
from synthgen.geometry import box_centres, box_sides, xyxy_to_xywh
from synthgen.layouts.base import Layout

WIDTH = 1280
PLOT = 320
HEAT_CELLS = 48
INK, PAPER, DISTRACTOR = "#e8e8e8", "#202020", "#808080"


def preview_sheet(layouts: Sequence[Layout], real: Sequence[Layout] = ()) -> Image.Image:
    """The layouts side by side, then where their boxes are, how large, of which shape, and how much they cover.

    Args:
        real: layouts to compare with: they stand in a row of their own, and grey in the histograms.
    """
    names = sorted({name for layout in [*layouts, *real] for name in layout.categories})
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    parts = [legend(colours, real), tiles(layouts, colours)]
    if real:
        parts.append(tiles(real[: len(layouts)], colours))
    parts.append(plots(layouts, real))
    sheet = Image.new("RGB", (WIDTH, sum(p.height for p in parts)), PAPER)
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    return sheet


def legend(colours: dict[str, str], real: Sequence[Layout]) -> Image.Image:
    """The categories' names in their colours."""
    line = Image.new("RGB", (WIDTH, 26), PAPER)
    draw, x = ImageDraw.Draw(line), 10
    for name, colour in colours.items():
        draw.rectangle((x, 8, x + 10, 18), fill=colour)
        draw.text((x + 16, 7), name, fill=INK)
        x += 32 + 7 * len(name)
    if real:
        draw.text(
            (x, 7), "first sampled layouts, then real ones; real in grey in the plots", fill=INK
        )
    return line


def tiles(layouts: Sequence[Layout], colours: dict[str, str]) -> Image.Image:
    """Layouts side by side, smaller the more there are."""
    columns = max(4, min(10, int(np.ceil(np.sqrt(1.6 * len(layouts))))))
    tile = WIDTH // columns
    return contact_sheet(
        [draw_layout(layout, colours, tile - 6) for layout in layouts], columns, tile
    )


def draw_layout(layout: Layout, colours: dict[str, str], side: int) -> Image.Image:
    """The boxes of one layout on dark ground, far ones first, distractors grey."""
    order = (
        np.argsort(-layout.depth, kind="stable")
        if layout.depth is not None
        else np.arange(len(layout))
    )
    layout = layout.select(order.tolist())
    labelled = np.ones(len(layout), bool) if layout.labelled is None else layout.labelled
    names = [name if kept else "" for name, kept in zip(layout.categories, labelled, strict=True)]
    boxes = xyxy_to_xywh(layout.boxes)
    scale = side / max(layout.width, layout.height)
    ground = Image.new("RGB", (layout.width, layout.height), "#303030")
    return draw_boxes(ground, boxes.tolist(), names, scale, {**colours, "": DISTRACTOR})


def plots(layouts: Sequence[Layout], real: Sequence[Layout]) -> Image.Image:
    """Heat map of the centres, and histograms of longer sides, aspects and coverage."""
    both = [list(layouts), list(real)]
    sides = [
        np.concatenate([np.zeros((0, 2)), *(box_sides(x.boxes) for x in group)]) for group in both
    ]
    row = [
        heat_map(layouts),
        histogram([s.max(1, initial=0) for s in sides], "longer side, px"),
        histogram([s[:, 0] / np.maximum(s[:, 1], 1e-6) for s in sides], "width / height"),
        histogram(
            [np.array([100 * x.coverage() for x in group]) for group in both],
            "sum of areas, % of the canvas",
        ),
    ]
    out = Image.new("RGB", (WIDTH, PLOT), PAPER)
    for i, plot in enumerate(row):
        out.paste(plot, (i * PLOT, 0))
    return out


def heat_map(layouts: Sequence[Layout]) -> Image.Image:
    """How many boxes' centres fall on each part of the canvas: black none, white most."""
    plot = Image.new("RGB", (PLOT, PLOT), PAPER)
    ImageDraw.Draw(plot).text((10, 6), "centres of all boxes", fill=INK)
    centres = [box_centres(x.boxes) / (x.width, x.height) for x in layouts]
    cells = np.clip(
        np.concatenate([np.zeros((0, 2)), *centres]) * HEAT_CELLS, 0, HEAT_CELLS - 1
    ).astype(int)
    counts = np.bincount(cells @ [1, HEAT_CELLS], minlength=HEAT_CELLS**2).reshape(
        HEAT_CELLS, HEAT_CELLS
    )
    level = counts / max(1, counts.max())
    rgb = np.stack(
        [np.minimum(1, 3 * level), np.clip(3 * level - 1, 0, 1), np.clip(3 * level - 2, 0, 1)], 2
    )
    first = layouts[0] if layouts else None
    shape = (first.width, first.height) if first else (1, 1)
    scale = (PLOT - 40) / max(shape)
    heat = Image.fromarray((rgb * 255).astype(np.uint8))
    plot.paste(
        heat.resize((round(shape[0] * scale), round(shape[1] * scale)), Image.Resampling.NEAREST),
        (10, 30),
    )
    return plot


def histogram(groups: Sequence[NDArray[np.floating]], title: str, bins: int = 20) -> Image.Image:
    """Bars of the first group's histogram, and a grey line of the second's, with their range below."""
    plot = Image.new("RGB", (PLOT, PLOT), PAPER)
    draw = ImageDraw.Draw(plot)
    draw.text((10, 6), title, fill=INK)
    every = np.concatenate(groups)
    if len(every) == 0:
        return plot
    edges = np.histogram_bin_edges(every, bins)
    step, height = (PLOT - 20) / bins, PLOT - 70
    for group, grey in zip(groups, (False, True), strict=False):
        share = np.histogram(group, edges)[0] / max(1, len(group))
        top = 30 + height * (
            1 - share / max(np.histogram(g, edges)[0].max() / max(1, len(g)) for g in groups)
        )
        for i, y in enumerate(top if len(group) else []):
            bar = (10 + i * step, y, 10 + (i + 0.85) * step, 30 + height)
            draw.rectangle(
                bar, outline="#b0b0b0" if grey else None, fill=None if grey else "#0a84ff"
            )
    draw.text((10, PLOT - 34), f"{edges[0]:.3g}", fill=INK)
    draw.text((PLOT - 60, PLOT - 34), f"{edges[-1]:.3g}", fill=INK)
    return plot


def write_preview(path: Path, layouts: Sequence[Layout], real: Sequence[Layout] = ()) -> None:
    """Save the sheet as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    preview_sheet(layouts, real).save(path, "PNG")
