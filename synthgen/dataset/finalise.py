"""The files beside the shards: writing them for a new and a finished dataset, and removing all."""

import io
from typing import Any

import pyarrow as pa
from ruamel.yaml import YAML

from synthgen.dataset.card import SHEET_IMAGES, write_card, write_contact_sheet
from synthgen.dataset.coco import CocoWriter, build_coco_head
from synthgen.dataset.info import (
    GENERATED_FILES,
    JOURNAL,
    DatasetInfo,
    list_changes,
    read_info,
    write_info,
)
from synthgen.dataset.manifest import open_index_writer, open_manifest_writer
from synthgen.dataset.marker import (
    TABLE,
    Marker,
    count_marked,
    format_shard_file,
    list_shard_files,
    map_ahead,
    scan_markers,
)
from synthgen.dataset.sample import read_conditions
from synthgen.dataset.shard import parse_rows, read_table
from synthgen.dataset.versions import DISTRIBUTION, read_versions
from synthgen.storage.base import Store

THREADS = 4  # number of threads that read tables while finalizing
FOLDERS = ("shards", "annotations")
CARD_KEYS = ("pipeline.method", "pipeline.model", "pipeline.scale", "seed")


def begin_dataset(store: Store, info: DatasetInfo, job: dict[str, Any]) -> None:
    """Write job.yaml and dataset.json before the first shard, so that a run can be resumed.

    What a failed start of another job left is removed first; `refuse_changed` has made sure that
    it has no shard.
    """
    old = read_info(store)
    if old is not None and list_changes(old, info):
        remove_dataset(store)
    if old is None or old != info:
        write_info(store, info, {"images": 0, "complete": False})
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(job, text)
    store.write("job.yaml", text.getvalue())


def remove_temporary_files(store: Store) -> None:
    """Remove staged and temporary files of a killed run; only the lock holder may call this."""
    store.clean(FOLDERS)


def remove_dataset(store: Store) -> None:
    """Remove the files that synthgen writes in an output folder, and nothing else.

    A folder that is not a synthgen dataset stays as it is.
    """
    if read_info(store) is None:
        return
    for folder in (*FOLDERS, JOURNAL):
        store.delete_folder(folder)
    for name in GENERATED_FILES:
        store.delete(name)


def finalize(store: Store, info: DatasetInfo) -> dict[str, Any]:
    """Write index, annotations, manifest, card and dataset.json for the committed shards.

    The table of each shard is read once; memory does not grow with the number of shards.

    Returns:
        {"images", "boxes", "shards", "bytes", "complete"}: the content of the dataset;
        "verified": of all images that were verified, the counts of failed boxes, false positives
        and repairs; "coco_files": the number of COCO files.
    """
    sizes = list_shard_files(store)
    coco_info = {
        "description": f"{info.name}: {info.about}",
        "version": read_versions().get(DISTRIBUTION, ""),
        "contributor": "synthgen",
    }
    head = build_coco_head(info.category_ids, coco_info, info.licence)

    def read_shard(shard: tuple[int, Marker]) -> tuple[int, Marker, pa.Table]:
        number, marker = shard
        return number, marker, read_table(store, number)

    first_rows: list[dict[str, Any]] = []
    with (
        open_index_writer(store, info.name) as index,
        open_manifest_writer(store) as manifest,
        CocoWriter(store, count_marked(sizes), head) as coco,
    ):
        for number, marker, table in map_ahead(read_shard, scan_markers(store, sizes), THREADS):
            index.add(number, marker)
            manifest.add(marker, table)
            rows = parse_rows(table, store.path(format_shard_file(number, TABLE)), number)
            coco.add(number, rows)
            first_rows += rows[: SHEET_IMAGES - len(first_rows)]
    write_contact_sheet(store, first_rows)
    counts = {
        **manifest.counts,
        "complete": manifest.counts["images"] == info.asked,
        "coco_files": len(coco.files),
    }
    write_card(
        store,
        info,
        collect_card_facts(info, counts),
        coco.files[0],
        manifest.has_masks,
        verified=bool(counts["verified"]),
        conditions=list(read_conditions(first_rows[0])) if first_rows else [],
        has_source=manifest.has_source,
    )
    write_info(store, info, counts)
    return counts


def collect_card_facts(info: DatasetInfo, counts: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of the card's table, by name."""
    facts: dict[str, Any] = {
        "images": counts["images"],
        "boxes": counts["boxes"],
        "shards": counts["shards"],
        "categories": ", ".join(info.category_ids),
        "licence": info.licence,
        **counts["verified"],
    }
    for key, value in info.fingerprint.items():
        if key in CARD_KEYS:
            facts[key] = value
    return facts
