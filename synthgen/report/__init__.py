"""One page to look at a dataset with: `report.html`, which opens from disk and loads nothing from elsewhere."""

import base64
import html
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from synthgen.dataset.info import read_info
from synthgen.dataset.marker import scan
from synthgen.dataset.sample import VERIFIED, annotations_of, conditions_of
from synthgen.dataset.shard import read_rows, shard_members
from synthgen.dataset.shard_reader import decoded
from synthgen.errors import InputError
from synthgen.storage.base import Store

SIDE, QUALITY = 384, 72  # of the pictures in the page: longer side in px, JPEG
MOST = 2000  # pictures in one page


class NoDatasetError(InputError):
    """A folder is no dataset of ours."""


def write_report(store: Store, most: int = MOST) -> dict[str, int]:
    """Write `report.html` beside the shards.

    Args:
        most: pictures that the page shows; of a larger dataset the first ones.

    Returns:
        {"images", "shown", "bytes"}.

    Raises:
        NoDatasetError: the folder holds none.
    """
    info = read_info(store)
    if info is None:
        raise NoDatasetError(f"{store}: not a synthgen dataset (no readable dataset.json)")
    told = list(shards(store))
    shown, total = (
        list(pictures(store, [shard["n"] for shard in told], most)),
        sum(shard["count"] for shard in told),
    )
    data = {
        "name": info.name,
        "images": total,
        "asked": info.asked,
        "pictures": shown,
        "shards": told,
    }
    job = store.read("job.yaml").decode(errors="replace") if store.exists("job.yaml") else ""
    page = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    text = json.dumps(data, separators=(",", ":")).replace(
        "<", "\\u003c"
    )  # nothing in it ends the script element
    values = {"@NAME@": html.escape(info.name), "@JOB@": html.escape(job), "@DATA@": text}
    page = re.sub(
        "|".join(values), lambda mark: values[mark[0]], page
    )  # once: a job may say @DATA@ too
    store.write("report.html", page)
    return {"images": total, "shown": len(shown), "bytes": len(page)}


def pictures(store: Store, numbers: Iterable[int], most: int) -> Iterator[dict[str, Any]]:
    """The samples, in order: a small picture and its labels."""
    done = 0
    for number in numbers:
        rows = {f"{row['key']}.{row['image_format']}": row for row in read_rows(store, number)}
        for name, data in shard_members(store, number):
            if name in rows and done < most:
                done += 1
                yield picture(rows[name], data)
        if done == most:
            return


def picture(row: dict[str, Any], data: bytes) -> dict[str, Any]:
    """One sample as the page has it."""
    buffer = io.BytesIO()
    small = decoded(data, f"sample {row['key']!r}")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=QUALITY)
    boxes = [
        {
            "b": [round(v, 1) for v in a.bbox],
            "c": a.category,
            "s": a.score,
            "i": a.iou,
            "a": a.action or "",
        }
        for a in annotations_of(row)
    ]
    facts = {name: row[name] for name in VERIFIED if row.get(name) is not None}
    drawn = {name: value for name, value in conditions_of(row).items() if value is not None}
    plain = {
        "n": row["index"],
        "w": row["width"],
        "h": row["height"],
        "p": row["prompt"],
        "t": row["attempt"],
    }
    return {
        **plain,
        **facts,
        "drawn": drawn,
        "boxes": boxes,
        "src": base64.b64encode(buffer.getvalue()).decode(),
    }


def shards(store: Store) -> Iterator[dict[str, Any]]:
    """Images and seconds of each shard."""
    for number, marker in scan(store):
        yield {
            "n": number,
            "count": marker.count,
            "seconds": round(marker.seconds, 3),
            "attempts": marker.attempts,
        }
