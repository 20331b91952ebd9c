"""The files beside the shards: written before the first of them, and from all of them; and all removed again."""

import io
from typing import Any

from ruamel.yaml import YAML

from synthgen.dataset.card import SHEET_IMAGES, write_card, write_contact_sheet
from synthgen.dataset.coco import CocoWriter, coco_head
from synthgen.dataset.info import JOURNAL, WRITTEN, DatasetInfo, changes, read_info, write_info
from synthgen.dataset.manifest import writing_index, writing_manifest
from synthgen.dataset.marker import TABLE, ahead, count_marked, scan, shard_file, shard_sizes
from synthgen.dataset.sample import conditions_of
from synthgen.dataset.shard import read_table, rows_of
from synthgen.dataset.versions import DISTRIBUTION, versions
from synthgen.storage.base import Store

TABLES = 4  # read at the same time while finalising
FOLDERS = ("shards", "annotations")


def begin(store: Store, info: DatasetInfo, job: dict[str, Any]) -> None:
    """Write job.yaml and dataset.json before the first shard, so that a resumed run knows what it goes on with.

    What a failed start of another job left is removed first: `refuse_changed` has found no shard of it.
    """
    old = read_info(store)
    if old is not None and changes(old, info):
        remove_dataset(store)
    if old is None or old != info:
        write_info(store, info, {"images": 0, "complete": False})
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(job, text)
    store.write("job.yaml", text.getvalue())


def clean(store: Store) -> None:
    """Remove staged and temporary files that a killed run left. Only for the holder of the lock."""
    store.clean(FOLDERS)


def remove_dataset(store: Store) -> None:
    """Remove what synthgen writes in an output folder, and nothing else; of a folder that is no dataset of ours nothing."""
    if read_info(store) is None:
        return
    for folder in (*FOLDERS, JOURNAL):
        store.delete_folder(folder)
    for name in WRITTEN:
        store.delete(name)


def finalize(store: Store, info: DatasetInfo) -> dict[str, Any]:
    """Write index, annotations, manifest, card and dataset.json for the shards committed so far.

    One shard's table after the other is read, once; memory does not grow with their number.

    Returns:
        {"images", "boxes", "shards", "bytes", "complete"}: what the dataset now holds; "verified": of all pictures that were
        looked at, boxes that do not hold, objects that nobody asked for, and repairs; and "coco_files": how many there are.
    """
    found = shard_sizes(store)
    coco_info = {
        "description": f"{info.name}: {info.about}",
        "version": versions().get(DISTRIBUTION, ""),
        "contributor": "synthgen",
    }
    first: list[dict[str, Any]] = []
    with (
        writing_index(store, info.name) as index,
        writing_manifest(store) as manifest,
        CocoWriter(
            store, count_marked(found), coco_head(info.category_ids, coco_info, info.licence)
        ) as coco,
    ):
        for number, marker, table in ahead(
            lambda shard: (*shard, read_table(store, shard[0])), scan(store, found), TABLES
        ):
            index.add(number, marker)
            manifest.add(marker, table)
            rows = rows_of(table, store.path(shard_file(number, TABLE)), number)
            coco.add(number, rows)
            first += rows[: SHEET_IMAGES - len(first)]
    write_contact_sheet(store, first)
    counts = {
        **manifest.counts,
        "complete": manifest.counts["images"] == info.asked,
        "coco_files": len(coco.files),
    }
    conditions = list(conditions_of(first[0])) if first else []
    facts, verified = card_facts(info, counts), bool(counts["verified"])
    write_card(
        store,
        info,
        facts,
        coco.files[0],
        manifest.has_masks,
        verified,
        conditions,
        manifest.from_coco,
    )
    write_info(store, info, counts)
    return counts


def card_facts(info: DatasetInfo, counts: dict[str, Any]) -> dict[str, Any]:
    """The table of the card."""
    facts = {
        "images": counts["images"],
        "boxes": counts["boxes"],
        "shards": counts["shards"],
        "categories": ", ".join(info.category_ids),
        "licence": info.licence,
    }
    model = {
        k: v
        for k, v in info.fingerprint.items()
        if k in ("pipeline.method", "pipeline.model", "pipeline.scale", "seed")
    }
    return {**facts, **counts["verified"], **model}
