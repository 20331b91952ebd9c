"""The samples of a finished dataset, one by one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthgen.annotations import default_phrase
from synthgen.dataset.marker import committed
from synthgen.dataset.sample import annotations_of
from synthgen.dataset.shard import read_rows, shard_members
from synthgen.dataset.shard_reader import decoded
from synthgen.geometry import xywh_to_xyxy
from synthgen.layouts.base import Layout
from synthgen.storage.base import Store


def read_labelled_images(
    store: Store, limit: int | None = None
) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8], Layout]]:
    """Row, picture (H, W, 3) and labels of each sample, in order."""
    done = 0
    for number in committed(store):
        rows = {f"{row['key']}.{row['image_format']}": row for row in read_rows(store, number)}
        for name, data in shard_members(store, number):
            if name in rows:
                if limit is not None and done == limit:
                    return
                done += 1
                yield rows[name], np.array(decoded(data, f"{store}: {name}")), layout_of(rows[name])


def layout_of(row: dict[str, Any]) -> Layout:
    """The annotations of a row, as a layout; crowds are left out."""
    annotations = [a for a in annotations_of(row) if not a.iscrowd]
    boxes = np.array([a.bbox for a in annotations], np.float64).reshape(-1, 4)
    names = tuple(a.category for a in annotations)
    phrases = tuple(a.phrase or default_phrase(a.category) for a in annotations)
    return Layout(
        row["width"], row["height"], xywh_to_xyxy(boxes).astype(np.float32), names, phrases
    )
