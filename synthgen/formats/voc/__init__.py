"""Pascal VOC."""

from synthgen.formats.base import Format, Option

CORNERS = ("pixels", "edges")

FORMAT = Format(
    name="voc",
    order=5,
    reader="synthgen.formats.voc.reader",
    writer="synthgen.formats.voc.writer",
    content="Pascal VOC (Annotations/*.xml, *.xml)",
    fields=("images", "split"),
    options=(
        Option(
            "voc_corners",
            CORNERS,
            "what xmin … ymax of VOC mean (default: by the program that wrote the file)",
        ),
    ),
    has_ids=False,
)
