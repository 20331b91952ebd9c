"""JSON lines, and Parquet tables with the same columns."""

from synthgen.formats.base import Format

FORMAT = Format(
    name="jsonl",
    order=2,
    reader="synthgen.formats.jsonl.reader",
    content="JSON lines or tables (*.jsonl, *.parquet)",
    fields=("images", "columns"),
)
