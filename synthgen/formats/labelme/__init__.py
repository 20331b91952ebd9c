"""labelme."""

from synthgen.formats.base import Format

FORMAT = Format(
    name="labelme",
    order=6,
    reader="synthgen.formats.labelme.reader",
    content="labelme (*.json with shapes)",
    fields=("images",),
    has_ids=False,
)
