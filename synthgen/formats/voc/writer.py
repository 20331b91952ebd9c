"""Pascal VOC: JPEGImages/, Annotations/KEY.xml, and the keys of each split in ImageSets/Main/.

VOC counts pixels from 1, both ends belonging to the box (VOC2012 development kit, "Annotations"): a
box from x0 to x1 px is xmin = round(x0) + 1, xmax = round(x1). The values are whole numbers, so
that a side moves by half a pixel at most. `difficult` marks crowds.
"""

from typing import Any
from xml.etree import ElementTree

from synthgen.annotations import Annotation
from synthgen.dataset.shard_reader import SPLITS
from synthgen.formats.export import (
    Export,
    join_lines,
    name_image,
    read_images,
    write_bytes,
    write_lines,
)
from synthgen.formats.voc.reader import CORNER_TAGS, OUR_NAME
from synthgen.geometry import xywh_to_voc

CROWDS = True


def write_shard(export: Export, number: int) -> None:
    """Write the images of a shard without changing their bytes, and a file of annotations each."""
    for _, row, annotations, data in read_images(export, number):
        write_bytes(export.folder / "JPEGImages" / name_image(row), data)
        xml = make_annotation_xml(export, row, annotations)
        write_bytes(export.folder / "Annotations" / f"{row['key']}.xml", xml)


def make_annotation_xml(
    export: Export, row: dict[str, Any], annotations: list[Annotation]
) -> bytes:
    """Return the file of annotations of an image."""
    root = ElementTree.Element("annotation")
    add_texts(root, folder="JPEGImages", filename=name_image(row))
    source = ElementTree.SubElement(root, "source")
    add_texts(source, database=join_lines(export.info.name), annotation=OUR_NAME)
    size = ElementTree.SubElement(root, "size")
    add_texts(size, width=row["width"], height=row["height"], depth=3)
    add_texts(root, segmented=0)
    for annotation in annotations:
        item = ElementTree.SubElement(root, "object")
        add_texts(
            item,
            name=join_lines(annotation.category),
            pose="Unspecified",
            truncated=0,
            difficult=annotation.iscrowd,
        )
        bounds = ElementTree.SubElement(item, "bndbox")
        corners = zip(CORNER_TAGS, xywh_to_voc(annotation.bbox), strict=True)
        add_texts(bounds, **dict(corners))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8") + b"\n"


def add_texts(parent: ElementTree.Element, **texts: Any) -> None:
    """Add an element with a text for each keyword argument."""
    for name, text in texts.items():
        ElementTree.SubElement(parent, name).text = str(text)


def finish(export: Export) -> None:
    """Write the keys of each split."""
    for split in SPLITS:
        keys = (row["key"] for row in export.read_rows(split))
        write_lines(export.folder / "ImageSets" / "Main" / f"{split}.txt", keys)
