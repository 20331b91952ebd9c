"""The samples of a finished dataset, one by one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthgen.layouts import Layout
from synthgen.shards.sample import annotations_of
from synthgen.shards.samples import decoded
from synthgen.shards.shard import committed, read_rows, shard_members
from synthgen.shards.store import Out, open_store


def samples(out: Out, limit: int | None = None) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8], Layout]]:
    """Row, picture (H, W, 3) and labels of each sample, in order."""
    done, store = 0, open_store(out)
    for number in committed(store):
        rows = {f"{row['key']}.{row['image_format']}": row for row in read_rows(store, number)}
        for name, data in shard_members(store, number):
            if name in rows:
                if limit is not None and done == limit:
                    return
                done += 1
                yield rows[name], np.array(decoded(data, f"{out}: {name}")), labels(rows[name])


def labels(row: dict[str, Any]) -> Layout:
    """The annotations of a row, as a layout; crowds are left out."""
    annotations = [a for a in annotations_of(row) if not a["iscrowd"]]
    boxes = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    names = tuple(a["category"] for a in annotations)
    phrases = tuple(a.get("phrase") or f"a {a['category']}" for a in annotations)
    return Layout(row["width"], row["height"], boxes.astype(np.float32), names, phrases)
