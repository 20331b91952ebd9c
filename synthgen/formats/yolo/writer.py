"""Ultralytics' folders: images/{split}, labels/{split} with `class cx cy w h` in shares of the picture, and data.yaml.

Classes count from 0 without gaps. Crowds are left out, as in Ultralytics' own conversion of COCO: there is no word for them.
"""

import numpy as np

from synthgen.annotations import Annotation
from synthgen.dataset.card import quoted
from synthgen.dataset.shard_reader import SPLITS
from synthgen.formats.export import Export, picture_name, pictures, write_bytes
from synthgen.geometry import xywh_to_yolo
from synthgen.storage.local import write_text

CROWDS = False


def write_shard(export: Export, number: int) -> None:
    """The pictures of a shard, byte by byte, and a file of labels for each, empty where there is nothing."""
    for split, row, annotations, data in pictures(export, number):
        lines = [
            label_line(export, a, row["width"], row["height"]) for a in annotations if not a.iscrowd
        ]
        write_bytes(export.folder / "labels" / split / f"{row['key']}.txt", "".join(lines).encode())
        write_bytes(export.folder / "images" / split / picture_name(row), data)


def label_line(export: Export, annotation: Annotation, width: int, height: int) -> str:
    """`class cx cy w h`."""
    values = xywh_to_yolo(np.array(annotation.bbox, np.float64), width, height).tolist()
    return (
        " ".join(
            [str(export.labels.names.index(annotation.category)), *(f"{v:.9f}" for v in values)]
        )
        + "\n"
    )


def finish(export: Export) -> None:
    """data.yaml. It names no `path`: Ultralytics then starts from the folder of data.yaml, wherever that is moved to."""
    train, val = SPLITS
    for split in SPLITS:
        (export.folder / "images" / split).mkdir(parents=True, exist_ok=True)
    held = (
        val if any((export.folder / "images" / val).iterdir()) else train
    )  # Ultralytics asks for a val that is not empty
    names = "".join(f"  {i}: {quoted(name)}\n" for i, name in enumerate(export.labels.names))
    write_text(
        export.folder / "data.yaml", f"train: images/{train}\nval: images/{held}\nnames:\n{names}"
    )
