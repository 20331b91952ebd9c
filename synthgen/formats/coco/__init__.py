"""COCO."""

from synthgen.formats.base import Format

FORMAT = Format(
    name="coco",
    order=1,
    reader="synthgen.formats.coco.reader",
    writer="synthgen.formats.coco.writer",
    content="COCO (instances*.json, annotations*.json)",
    fields=("images",),
)
