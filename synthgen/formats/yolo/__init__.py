"""YOLO, as Ultralytics and Darknet define it."""

from synthgen.formats.base import Format, Option

TASKS = ("detect", "segment", "pose", "obb", "mixed")

FORMAT = Format(
    name="yolo",
    order=3,
    reader="synthgen.formats.yolo.reader",
    writer="synthgen.formats.yolo.writer",
    content="YOLO (data.yaml, obj.data, images/ and labels/, or classes.txt)",
    fields=("split",),
    options=(
        Option("task", TASKS, "what a line of a YOLO dataset means, where that is ambiguous"),
    ),
)
