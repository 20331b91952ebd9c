#!/usr/bin/env python3
"""Make the tables of the documentation from the results in benchmarks/results/.

usage: benchmarks/tables.py

On a page, a comment `<!-- table: methods -->` is above a table, and `<!-- end of table -->` below.
The script replaces the text between them by the table of benchmarks/results/methods.json.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
ORDER = (
    "paste",
    "mixture",
    "inpaint",
    "layered",
    "grounded",
    "regional_attention",
    "annotation_mask",
    "annotation_tokens",
)
COLUMNS = {
    "hit rate": ".2f",
    "variety": ".2f",
    "count error": ".3f",
    "colour": ".2f",
    "seconds": ".1f",
    "calls": ".0f",
    "passes": ".0f",
    "GB": ".2f",
}

Rows = list[dict[str, Any]]


def main() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text()
        remade = remake(text)
        if remade != text:
            page.write_text(remade)
            print(page.relative_to(ROOT))


def remake(text: str) -> str:
    """Return the text of a page with new tables."""
    return MARKED.sub(lambda match: match[1] + make_table(match[2]) + match[3], text)


def make_table(name: str) -> str:
    """Return the Markdown table of a file of results, with a newline after each row."""
    rows: Rows = json.loads((RESULTS / f"{name}.json").read_text())
    return "".join(line + "\n" for line in TABLES[name](rows))


def tabulate_methods(rows: Rows) -> list[str]:
    """Return the table of benchmarks/methods.py, sorted by number of dogs, method and scale."""
    lines = [
        "| method, dogs | scale | " + " | ".join(COLUMNS) + " |",
        "| --- |" + " --- |" * (1 + len(COLUMNS)),
    ]
    for row in sorted(rows, key=sort_key_of_method):
        changes = [change for change in row["changes"] if "dtype" not in change]
        name = ", ".join([row["method"], str(row["dogs"]), *changes])
        scale = "-" if row["method"] in ("paste", "inpaint") else f"{row['scale']:g}"
        cells = []
        for column, style in COLUMNS.items():
            cells.append("not measured" if row[column] is None else format(row[column], style))
        lines.append(f"| {name} | {scale} | " + " | ".join(cells) + " |")
    return lines


def sort_key_of_method(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return the key by which the rows of `tabulate_methods` are sorted."""
    return (
        row["dogs"],
        ORDER.index(row["method"]),
        len(row["changes"]),
        row["scale"],
        row["changes"],
    )


def tabulate_encodings(rows: Rows) -> list[str]:
    """Return the table of benchmarks/encodings.py."""
    lines = [
        "| format | quality | subsampling | kB an image | hit rate |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        quality = row.get("quality", "-")
        subsampling = row.get("subsampling", "-")
        figures = f"{row['bytes'] / 1000:.0f} | {row['hit rate']:.3f}"
        lines.append(f"| {row['image_format']} | {quality} | {subsampling} | {figures} |")
    return lines


def tabulate_speed(rows: Rows) -> list[str]:
    """Return the table of benchmarks/speed.py."""
    lines = ["| | before, seconds | now, seconds | times as fast |", "| --- | --- | --- | --- |"]
    for row in rows:
        figures = f"{row['before']:.3g} | {row['now']:.3g} | {row['times']:.2f}"
        lines.append(f"| {row['row']} | {figures} |")
    return lines


def tabulate_small_boxes(rows: Rows) -> list[str]:
    """Return the table of benchmarks/small_boxes.py."""
    lines = [
        "| | hit rate | variety | seconds | passes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cost = "- | -"
        if row["passes"] is not None:
            cost = f"{row['seconds']:.1f} | {row['passes']:.0f}"
        lines.append(f"| {row['row']} | {row['hit rate']:.2f} | {row['variety']:.2f} | {cost} |")
    return lines


def tabulate_counts(rows: Rows) -> list[str]:
    """Return the table of benchmarks/counts.py."""
    lines = [
        "| checkpoint, method | boxes | passes | TFLOP | A100, seconds | H100, seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        name = f"{row['checkpoint']}, {row['method']}"
        work = f"{row['passes']:,.0f} | {row['TFLOP']:,.0f}"
        seconds = f"{row['A100']:.3g} | {row['H100']:.3g}"
        lines.append(f"| {name} | {row['dogs']} | {work} | {seconds} |")
    return lines


def tabulate_memory(rows: Rows) -> list[str]:
    """Return the table of benchmarks/memory.py."""
    lines = ["| `pipeline.memory` | GB of weights |", "| --- | --- |"]
    for row in rows:
        lines.append(f"| {row['memory']} | {row['GB']:.2f} |")
    return lines


TABLES: dict[str, Callable[[Rows], list[str]]] = {
    "methods": tabulate_methods,
    "small_boxes": tabulate_small_boxes,
    "encodings": tabulate_encodings,
    "speed": tabulate_speed,
    "counts": tabulate_counts,
    "memory": tabulate_memory,
}


if __name__ == "__main__":
    main()
