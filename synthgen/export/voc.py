"""Pascal VOC: JPEGImages/, Annotations/KEY.xml, and the keys of each split in ImageSets/Main/{split}.txt.

VOC counts pixels from 1, both ends belonging to the box (VOC2012 development kit, "Annotations"): a box from x0 to x1 px is
xmin = round(x0) + 1, xmax = round(x1). Whole numbers: a side moves by half a pixel at most. `difficult` marks crowds.
"""

from math import ceil
from typing import Any
from xml.etree import ElementTree

from synthgen.export import Export, picture_name, pictures, printable, write_bytes, write_lines
from synthgen.records.voc import OURS
from synthgen.shards.samples import SPLITS

CROWDS = True


def write_shard(export: Export, number: int) -> None:
    """The pictures of a shard, byte by byte, and the annotations of each."""
    for _, row, annotations, data in pictures(export, number):
        write_bytes(export.folder / "JPEGImages" / picture_name(row), data)
        write_bytes(export.folder / "Annotations" / f"{row['key']}.xml", annotation_xml(export, row, annotations))


def annotation_xml(export: Export, row: dict[str, Any], annotations: list[dict[str, Any]]) -> bytes:
    root = ElementTree.Element("annotation")
    put(root, folder="JPEGImages", filename=picture_name(row))
    put(ElementTree.SubElement(root, "source"), database=printable(export.info.name), annotation=OURS)
    put(ElementTree.SubElement(root, "size"), width=row["width"], height=row["height"], depth=3)
    put(root, segmented=0)
    for annotation in annotations:
        item = ElementTree.SubElement(root, "object")
        put(item, name=printable(annotation["category"]), pose="Unspecified", truncated=0, difficult=annotation["iscrowd"])
        put(ElementTree.SubElement(item, "bndbox"), **corners(annotation["bbox"]))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8") + b"\n"


def put(parent: ElementTree.Element, **texts: Any) -> None:
    """Elements that hold a text."""
    for name, text in texts.items():
        ElementTree.SubElement(parent, name).text = str(text)


def corners(bbox: list[float]) -> dict[str, int]:
    """VOC's corners of x, y, width, height in px; never without a pixel, never beyond the last one that the box touches."""
    x, y, w, h = bbox
    xmin, ymin = min(round(x) + 1, ceil(x + w)), min(round(y) + 1, ceil(y + h))
    return {"xmin": xmin, "ymin": ymin, "xmax": max(xmin, round(x + w)), "ymax": max(ymin, round(y + h))}


def finish(export: Export) -> None:
    """The keys of each split."""
    for split in SPLITS:
        write_lines(export.folder / "ImageSets" / "Main" / f"{split}.txt", (row["key"] for row in export.rows(split)))
