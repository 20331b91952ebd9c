"""Ultralytics' folders: images/{split}, labels/{split} and data.yaml.

A line of labels is `class cx cy w h` in shares of the image. Classes count from 0 without gaps.
Crowds are left out, as in Ultralytics' own conversion of COCO, because the format has none.
"""

import numpy as np

from synthgen.annotations import Annotation
from synthgen.dataset.card import quote_yaml
from synthgen.dataset.shard_reader import SPLITS
from synthgen.formats.export import Export, name_image, read_images, write_bytes
from synthgen.geometry import xywh_to_yolo
from synthgen.storage.local import write_text

CROWDS = False


def write_shard(export: Export, number: int) -> None:
    """Write the images of a shard without changing their bytes, and a file of labels for each.

    The file of an image without objects is empty.
    """
    for split, row, annotations, data in read_images(export, number):
        lines: list[str] = []
        for annotation in annotations:
            if not annotation.iscrowd:
                lines.append(format_label(export, annotation, row["width"], row["height"]))
        labels = "".join(lines).encode()
        write_bytes(export.folder / "labels" / split / f"{row['key']}.txt", labels)
        write_bytes(export.folder / "images" / split / name_image(row), data)


def format_label(export: Export, annotation: Annotation, width: int, height: int) -> str:
    """Return the line `class cx cy w h` of an annotation."""
    class_number = export.labels.names.index(annotation.category)
    box = xywh_to_yolo(np.array(annotation.bbox, np.float64), width, height)
    cx, cy, w, h = box.tolist()
    return f"{class_number} {cx:.9f} {cy:.9f} {w:.9f} {h:.9f}\n"


def finish(export: Export) -> None:
    """Write data.yaml.

    It states no `path`, so that Ultralytics starts from the folder of data.yaml, wherever it is
    moved to. Ultralytics requires a split val with images: if there is none, train stands in.
    """
    train, val = SPLITS
    for split in SPLITS:
        (export.folder / "images" / split).mkdir(parents=True, exist_ok=True)
    has_val = any((export.folder / "images" / val).iterdir())
    names = "".join(f"  {i}: {quote_yaml(name)}\n" for i, name in enumerate(export.labels.names))
    write_text(
        export.folder / "data.yaml",
        f"train: images/{train}\nval: images/{val if has_val else train}\nnames:\n{names}",
    )
