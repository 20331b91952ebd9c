"""Pascal VOC: JPEGImages/, Annotations/KEY.xml, and the keys of each split in ImageSets/Main/{split}.txt.

VOC counts pixels from 1, both ends belonging to the box (VOC2012 development kit, "Annotations"): a box from x0 to x1 px is
xmin = round(x0) + 1, xmax = round(x1). Whole numbers: a side moves by half a pixel at most. `difficult` marks crowds.
"""

from typing import Any
from xml.etree import ElementTree

from synthgen.annotations import Annotation
from synthgen.dataset.shard_reader import SPLITS
from synthgen.formats.export import (
    Export,
    picture_name,
    pictures,
    printable,
    write_bytes,
    write_lines,
)
from synthgen.formats.voc.reader import ENDS, OURS
from synthgen.geometry import xywh_to_voc

CROWDS = True


def write_shard(export: Export, number: int) -> None:
    """The pictures of a shard, byte by byte, and the annotations of each."""
    for _, row, annotations, data in pictures(export, number):
        write_bytes(export.folder / "JPEGImages" / picture_name(row), data)
        write_bytes(
            export.folder / "Annotations" / f"{row['key']}.xml",
            annotation_xml(export, row, annotations),
        )


def annotation_xml(export: Export, row: dict[str, Any], annotations: list[Annotation]) -> bytes:
    root = ElementTree.Element("annotation")
    put(root, folder="JPEGImages", filename=picture_name(row))
    put(
        ElementTree.SubElement(root, "source"),
        database=printable(export.info.name),
        annotation=OURS,
    )
    put(ElementTree.SubElement(root, "size"), width=row["width"], height=row["height"], depth=3)
    put(root, segmented=0)
    for annotation in annotations:
        item = ElementTree.SubElement(root, "object")
        put(
            item,
            name=printable(annotation.category),
            pose="Unspecified",
            truncated=0,
            difficult=annotation.iscrowd,
        )
        put(
            ElementTree.SubElement(item, "bndbox"),
            **dict(zip(ENDS, xywh_to_voc(annotation.bbox), strict=True)),
        )
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8") + b"\n"


def put(parent: ElementTree.Element, **texts: Any) -> None:
    """Elements that hold a text."""
    for name, text in texts.items():
        ElementTree.SubElement(parent, name).text = str(text)


def finish(export: Export) -> None:
    """The keys of each split."""
    for split in SPLITS:
        write_lines(
            export.folder / "ImageSets" / "Main" / f"{split}.txt",
            (row["key"] for row in export.rows(split)),
        )
