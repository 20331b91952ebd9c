"""Ultralytics' folders: images/{split}, labels/{split} with `class cx cy w h` in shares of the picture, and data.yaml.

Classes count from 0 without gaps. Crowds are left out, as in Ultralytics' own conversion of COCO: there is no word for them.
"""

from typing import Any

from synthgen.export import Export, picture_name, pictures, write_bytes
from synthgen.shards.card import quoted
from synthgen.shards.samples import SPLITS
from synthgen.shards.store import write_text

CROWDS = False


def write_shard(export: Export, number: int) -> None:
    """The pictures of a shard, byte by byte, and a file of labels for each, empty where there is nothing."""
    for split, row, annotations, data in pictures(export, number):
        lines = [label_line(export, a, row["width"], row["height"]) for a in annotations if not a["iscrowd"]]
        write_bytes(export.folder / "labels" / split / f"{row['key']}.txt", "".join(lines).encode())
        write_bytes(export.folder / "images" / split / picture_name(row), data)


def label_line(export: Export, annotation: dict[str, Any], width: int, height: int) -> str:
    """`class cx cy w h`."""
    x, y, w, h = annotation["bbox"]
    values = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
    return " ".join([str(export.labels.names.index(annotation["category"])), *(f"{v:.9f}" for v in values)]) + "\n"


def finish(export: Export) -> None:
    """data.yaml. It names no `path`: Ultralytics then starts from the folder of data.yaml, wherever that is moved to."""
    train, val = SPLITS
    for split in SPLITS:
        (export.folder / "images" / split).mkdir(parents=True, exist_ok=True)
    held = val if any((export.folder / "images" / val).iterdir()) else train  # Ultralytics asks for a val that is not empty
    names = "".join(f"  {i}: {quoted(name)}\n" for i, name in enumerate(export.labels.names))
    write_text(export.folder / "data.yaml", f"train: images/{train}\nval: images/{held}\nnames:\n{names}")
