"""The images of a finished dataset with their labels, one by one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthgen.annotations import build_default_phrase
from synthgen.dataset.marker import list_committed_shards
from synthgen.dataset.sample import format_image_name, read_annotations
from synthgen.dataset.shard import list_shard_members, read_rows
from synthgen.dataset.shard_reader import decode_image
from synthgen.geometry import xywh_to_xyxy
from synthgen.layouts.base import Layout
from synthgen.storage.base import Store


def read_labelled_images(
    store: Store, limit: int | None = None
) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8], Layout]]:
    """Yield row, image (H, W, 3) and labels of each sample, in order.

    Args:
        limit: read so many images; None: all.
    """
    count = 0
    for number in list_committed_shards(store):
        rows = {format_image_name(row): row for row in read_rows(store, number)}
        for name, data in list_shard_members(store, number):
            if name not in rows:
                continue
            if count == limit:
                return
            count += 1
            image = np.array(decode_image(data, f"{store}: {name}"))
            yield rows[name], image, read_layout(rows[name])


def read_layout(row: dict[str, Any]) -> Layout:
    """Return the annotations of a row as a layout, without crowds."""
    boxes = []
    categories = []
    phrases = []
    for annotation in read_annotations(row):
        if not annotation.iscrowd:
            boxes.append(annotation.bbox)
            categories.append(annotation.category)
            phrases.append(annotation.phrase or build_default_phrase(annotation.category))
    corners = xywh_to_xyxy(np.array(boxes, np.float64).reshape(-1, 4)).astype(np.float32)
    return Layout(row["width"], row["height"], corners, tuple(categories), tuple(phrases))
