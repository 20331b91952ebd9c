"""The report of a dataset: `report.html`, one page that needs no other files and no network."""

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
from synthgen.dataset.marker import scan_markers
from synthgen.dataset.sample import VERIFIED, format_image_name, read_annotations, read_conditions
from synthgen.dataset.shard import list_shard_members, read_rows
from synthgen.dataset.shard_reader import decode_image
from synthgen.errors import InputError
from synthgen.storage.base import Store

TEMPLATE = Path(__file__).with_name("report.html")
THUMBNAIL_SIDE = 384  # px, the longer side
THUMBNAIL_QUALITY = 72  # JPEG quality
MAX_IMAGES = 2000


class NoDatasetError(InputError):
    """A folder is not a synthgen dataset."""


def write_report(store: Store, most: int = MAX_IMAGES) -> dict[str, int]:
    """Write `report.html` beside the shards.

    Args:
        most: number of images that the page shows; of a larger dataset it shows the first ones.

    Returns:
        {"images", "shown", "bytes"}.

    Raises:
        NoDatasetError: the folder is not a synthgen dataset.
    """
    info = read_info(store)
    if info is None:
        raise NoDatasetError(f"{store}: not a synthgen dataset (no readable dataset.json)")
    shards = list(describe_shards(store))
    numbers = [shard["n"] for shard in shards]
    images = list(describe_images(store, numbers, most))
    total = sum(shard["count"] for shard in shards)
    data = {
        "name": info.name,
        "images": total,
        "asked": info.asked,
        "pictures": images,
        "shards": shards,
    }
    job = store.read("job.yaml").decode(errors="replace") if store.exists("job.yaml") else ""
    page = fill_page(info.name, job, data)
    store.write("report.html", page)
    return {"images": total, "shown": len(images), "bytes": len(page)}


def fill_page(name: str, job: str, data: dict[str, Any]) -> str:
    """Return the page for a dataset.

    Args:
        name: the name of the dataset.
        job: text of its job file.
        data: the data that the script of the page reads.
    """
    text = json.dumps(data, separators=(",", ":"))
    values = {
        "@NAME@": html.escape(name),
        "@JOB@": html.escape(job),
        "@DATA@": text.replace("<", "\\u003c"),  # nothing may end the script element
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    # All are replaced in one pass, because a value may contain a placeholder.
    return re.sub("|".join(values), lambda match: values[match[0]], template)


def describe_images(store: Store, numbers: Iterable[int], most: int) -> Iterator[dict[str, Any]]:
    """Yield the samples of some shards, in order, as `describe_image` returns them.

    Args:
        numbers: the numbers of the shards.
        most: number of samples after which to stop.
    """
    count = 0
    for number in numbers:
        rows = {format_image_name(row): row for row in read_rows(store, number)}
        for name, data in list_shard_members(store, number):
            if name in rows and count < most:
                count += 1
                yield describe_image(rows[name], data)
        if count == most:
            return


def describe_image(row: dict[str, Any], data: bytes) -> dict[str, Any]:
    """Return one sample for the script of the page: a thumbnail with its labels.

    Args:
        row: the sample's row in the table of the shard.
        data: the encoded image.
    """
    thumbnail = decode_image(data, f"sample {row['key']!r}")
    thumbnail.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    thumbnail.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    description = {
        "n": row["index"],
        "w": row["width"],
        "h": row["height"],
        "p": row["prompt"],
        "t": row["attempt"],
    }
    for name in VERIFIED:
        if row.get(name) is not None:
            description[name] = row[name]
    conditions = read_conditions(row).items()
    description["drawn"] = {name: value for name, value in conditions if value is not None}
    description["boxes"] = _describe_boxes(row)
    description["src"] = base64.b64encode(buffer.getvalue()).decode()
    return description


def _describe_boxes(row: dict[str, Any]) -> list[dict[str, Any]]:
    boxes = []
    for annotation in read_annotations(row):
        box = {
            "b": [round(value, 1) for value in annotation.bbox],
            "c": annotation.category,
            "s": annotation.score,
            "i": annotation.iou,
            "a": annotation.action or "",
        }
        boxes.append(box)
    return boxes


def describe_shards(store: Store) -> Iterator[dict[str, Any]]:
    """Yield number, images, seconds and attempts of each shard."""
    for number, marker in scan_markers(store):
        yield {
            "n": number,
            "count": marker.count,
            "seconds": round(marker.seconds, 3),
            "attempts": marker.attempts,
        }
