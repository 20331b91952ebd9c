"""A preview of sampled layouts, with the distributions of their boxes, before generation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from synthgen.dataset.card import COLOURS, draw_boxes, make_contact_sheet
from synthgen.geometry import box_centres, box_sides, xyxy_to_xywh
from synthgen.layouts.base import Layout

WIDTH = 1280  # px of the sheet
PLOT = 320  # px of a plot
MARGIN = 10  # px of a plot
HEAT_CELLS = 48
INK = "#e8e8e8"
PAPER = "#202020"
CANVAS = "#303030"
DISTRACTOR = "#808080"
BAR = "#0a84ff"
REAL_BAR = "#b0b0b0"


def draw_preview_sheet(layouts: Sequence[Layout], real: Sequence[Layout] = ()) -> Image.Image:
    """Return a sheet of layouts with plots of positions, sizes, shapes and coverage.

    Args:
        real: layouts to compare with. They get a row of their own, and grey bars in the histograms.
    """
    names: set[str] = set()
    for layout in (*layouts, *real):
        names.update(layout.categories)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(sorted(names))}
    parts = [legend(colours, real), tiles(layouts, colours)]
    if real:
        parts.append(tiles(real[: len(layouts)], colours))
    parts.append(plots(layouts, real))
    sheet = Image.new("RGB", (WIDTH, sum(part.height for part in parts)), PAPER)
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    return sheet


def legend(colours: dict[str, str], real: Sequence[Layout]) -> Image.Image:
    """Return a line with the names of the categories in their colours."""
    line = Image.new("RGB", (WIDTH, 26), PAPER)
    draw = ImageDraw.Draw(line)
    x = MARGIN
    for name, colour in colours.items():
        draw.rectangle((x, 8, x + 10, 18), fill=colour)
        draw.text((x + 16, 7), name, fill=INK)
        x += 32 + 7 * len(name)
    if real:
        text = "first sampled layouts, then real ones; real in grey in the plots"
        draw.text((x, 7), text, fill=INK)
    return line


def tiles(layouts: Sequence[Layout], colours: dict[str, str]) -> Image.Image:
    """Return the layouts side by side; the more there are, the smaller they are."""
    columns = max(4, min(10, int(np.ceil(np.sqrt(1.6 * len(layouts))))))
    tile = WIDTH // columns
    drawings = [draw_layout(layout, colours, tile - 6) for layout in layouts]
    return make_contact_sheet(drawings, columns, tile)


def draw_layout(layout: Layout, colours: dict[str, str], side: int) -> Image.Image:
    """Return the boxes of one layout on a dark background, distractors in grey.

    Boxes are drawn from far to near.

    Args:
        side: longer side of the drawing in px.
    """
    if layout.depth is not None:
        order = np.argsort(-layout.depth, kind="stable")
        layout = layout.select(order.tolist())
    names = list(layout.categories)
    if layout.labelled is not None:
        for i in np.flatnonzero(~layout.labelled):
            names[i] = ""
    boxes = xyxy_to_xywh(layout.boxes).tolist()
    scale = side / max(layout.width, layout.height)
    canvas = Image.new("RGB", (layout.width, layout.height), CANVAS)
    return draw_boxes(canvas, boxes, names, scale, {**colours, "": DISTRACTOR})


def plots(layouts: Sequence[Layout], real: Sequence[Layout]) -> Image.Image:
    """Return a heat map of the centres, and histograms of longer side, aspect and coverage."""
    longer_sides = []
    aspects = []
    coverages = []
    for group in (layouts, real):
        sides = np.concatenate([np.zeros((0, 2)), *(box_sides(x.boxes) for x in group)])
        longer_sides.append(sides.max(1, initial=0))
        aspects.append(sides[:, 0] / np.maximum(sides[:, 1], 1e-6))
        coverages.append(np.array([100 * layout.coverage() for layout in group]))
    row = [
        draw_heat_map(layouts),
        draw_histogram(longer_sides, "longer side, px"),
        draw_histogram(aspects, "width / height"),
        draw_histogram(coverages, "sum of areas, % of the canvas"),
    ]
    sheet = Image.new("RGB", (WIDTH, PLOT), PAPER)
    for i, plot in enumerate(row):
        sheet.paste(plot, (i * PLOT, 0))
    return sheet


def draw_heat_map(layouts: Sequence[Layout]) -> Image.Image:
    """Return a plot of the centres of boxes on the canvas: black for none, white for the most."""
    plot = Image.new("RGB", (PLOT, PLOT), PAPER)
    ImageDraw.Draw(plot).text((MARGIN, 6), "centres of all boxes", fill=INK)
    centres = [np.zeros((0, 2))]
    for layout in layouts:
        centres.append(box_centres(layout.boxes) / (layout.width, layout.height))
    cells = np.clip(np.concatenate(centres) * HEAT_CELLS, 0, HEAT_CELLS - 1).astype(int)
    counts = np.bincount(cells @ [1, HEAT_CELLS], minlength=HEAT_CELLS**2)
    counts = counts.reshape(HEAT_CELLS, HEAT_CELLS)
    level = counts / max(1, counts.max())
    red = np.minimum(1, 3 * level)
    green = np.clip(3 * level - 1, 0, 1)
    blue = np.clip(3 * level - 2, 0, 1)
    rgb = (np.stack([red, green, blue], 2) * 255).astype(np.uint8)
    width, height = (layouts[0].width, layouts[0].height) if layouts else (1, 1)
    scale = (PLOT - 40) / max(width, height)
    size = (round(width * scale), round(height * scale))
    heat = Image.fromarray(rgb).resize(size, Image.Resampling.NEAREST)
    plot.paste(heat, (MARGIN, 30))
    return plot


def draw_histogram(
    groups: Sequence[NDArray[np.floating]], title: str, bins: int = 20
) -> Image.Image:
    """Return a histogram: bars for the first group, grey outlines for the second, and the range.

    Args:
        groups: values of the sampled layouts, and of the real ones.
    """
    plot = Image.new("RGB", (PLOT, PLOT), PAPER)
    draw = ImageDraw.Draw(plot)
    draw.text((MARGIN, 6), title, fill=INK)
    values = np.concatenate(groups)
    if len(values) == 0:
        return plot
    edges = np.histogram_bin_edges(values, bins)
    shares = [np.histogram(group, edges)[0] / max(1, len(group)) for group in groups]
    highest = max(share.max() for share in shares)
    step = (PLOT - 20) / bins
    height = PLOT - 70
    bottom = 30 + height
    styles: list[dict[str, Any]] = [{"fill": BAR}, {"outline": REAL_BAR}]
    for group, share, style in zip(groups, shares, styles, strict=False):
        if len(group) == 0:
            continue
        tops = 30 + height * (1 - share / highest)
        for i, top in enumerate(tops):
            left = MARGIN + i * step
            right = MARGIN + (i + 0.85) * step
            draw.rectangle((left, top, right, bottom), **style)
    draw.text((MARGIN, PLOT - 34), f"{edges[0]:.3g}", fill=INK)
    draw.text((PLOT - 60, PLOT - 34), f"{edges[-1]:.3g}", fill=INK)
    return plot


def write_preview(path: Path, layouts: Sequence[Layout], real: Sequence[Layout] = ()) -> None:
    """Write the preview sheet as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_preview_sheet(layouts, real).save(path, "PNG")
