"""What a dataset says of itself in dataset.json, and whether a job goes on with it."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter

from synthgen.dataset.former_defaults import complete
from synthgen.dataset.marker import MARKER, NUMBER
from synthgen.dataset.sample import IMAGE_FORMATS
from synthgen.dataset.versions import versions
from synthgen.errors import InputError
from synthgen.storage.base import Store
from synthgen.storage.local import LocalStore
from synthgen.strict_json import to_json

KINDS = "|".join(IMAGE_FORMATS)
REVISION = (
    ".revision"  # how keys end that say how often a result has changed without a key of its own
)
JOURNAL = "log.jsonl"  # what runs did (`synthgen.engine.run_log`)
WRITTEN = (
    "job.yaml",
    "index.json",
    "manifest.parquet",
    "README.md",
    "contact_sheet.jpg",
    "report.html",
    "skipped.jsonl",
    "failures.jsonl",
    JOURNAL,
    "dataset.json",  # removed last: without it the rest is not known to be ours
)


class ChangedJobError(InputError):
    """The output holds another job; the message names the keys that differ."""


def of_coco(source: dict[str, Any]) -> dict[str, Any]:
    """What `synthgen.formats.coco.reader.head` gives; raises ValueError if it is something else."""
    kinds = {"head": dict, "file_names": bool, "annotation_ids": bool}
    if not all(isinstance(source.get(name), kind) for name, kind in kinds.items()):
        raise ValueError(f"not a mapping of {', '.join(kinds)}")
    return source


@dataclass(frozen=True)
class DatasetInfo:
    """What the driver tells of the job, and what outlives it in dataset.json.

    Attributes:
        image_format: jpg, png or webp; several, as WebDataset writes alternatives ("jpg;png"), if pictures were imported.
        imported: the form that the pictures were imported from; null: synthgen made them.
        source: of an imported COCO file all but its images and annotations (`synthgen.formats.coco.reader.head`).
        sources: the datasets that were merged, in the order of their samples; null: it was not merged.
    """

    name: str
    asked: Annotated[int, Field(ge=0)]  # images
    fingerprint: dict[str, Any]
    category_ids: dict[str, Annotated[int, Field(ge=1)]]
    image_format: Annotated[str, Field(pattern=f"^({KINDS})(;({KINDS}))*$")]
    licence: str
    imported: str | None = None
    source: Annotated[dict[str, Any], AfterValidator(of_coco)] | None = None
    sources: list[dict[str, Any]] | None = None

    @property
    def about(self) -> str:
        """What the dataset is, in one line."""
        if self.sources:
            return f"{len(self.sources)} datasets merged by synthgen: {', '.join(str(s.get('name')) for s in self.sources)}"
        if self.imported:
            return f"pictures and labels imported by synthgen ({self.imported})"
        return "synthetic images made by synthgen; boxes are known by construction"


INFO = TypeAdapter(DatasetInfo)


def read_info(store: Store) -> DatasetInfo | None:
    """What dataset.json says; None if there is none."""
    try:
        return INFO.validate_json(store.read("dataset.json"), strict=True)
    except (OSError, ValueError):
        return None


def write_info(store: Store, info: DatasetInfo, counts: dict[str, Any]) -> None:
    """Replace dataset.json."""
    text = to_json({**vars(info), **counts, "versions": versions()}, indent=1) + "\n"
    store.write("dataset.json", text)


def refuse_changed(store: Store, info: DatasetInfo) -> None:
    """Raise ChangedJobError if the output has shards of another job, or holds more images than are asked for.

    An output without a shard belongs to nobody: a run that failed before its first shard does not stand in the way of a
    mended one.
    """
    old = read_info(store)
    changed = [] if old is None else changes(old, info)
    if changed and has_shard(store):
        raise ChangedJobError(
            f"{store} holds another job: {'; '.join(changed)}. Give another output.path, or --overwrite"
        )


def has_shard(store: Store) -> bool:
    """Whether any shard was committed: whether there is a marker, whatever became of its shard since."""
    for name, _ in store.sizes("shards"):
        stem, dot, suffix = name.partition(".")
        if f"{dot}{suffix}" == MARKER and NUMBER.fullmatch(stem):
            return True
    return False


def changes(old: DatasetInfo, info: DatasetInfo) -> list[str]:
    """What another job says otherwise, each as `key: was …, is …`.

    A key that the old fingerprint does not know had its former default (`synthgen.dataset.former_defaults`).
    """
    here = json.loads(json.dumps(info.fingerprint))
    there = complete(old.fingerprint, here)
    changed = []
    for key in sorted({*here, *there}):
        if here.get(key) != there.get(key):
            absent = "1" if key.endswith(REVISION) else "not set"
            was = repr(there[key]) if key in there else absent
            changed.append(
                f"{key}: was {was}, is {here[key]!r}"
                if key in here
                else f"{key}: was {was}, is not set"
            )
    if old.asked > info.asked:
        changed.append(
            f"images: was {old.asked}, is {info.asked}; a dataset can be extended, not shortened"
        )
    return changed


def refuse_foreign(store: Store) -> None:
    """Raise ChangedJobError if the folder holds shards that are no dataset of ours, or files that a dataset would replace."""
    local = store.root if isinstance(store, LocalStore) else None
    if local is not None and local.exists() and not local.is_dir():
        raise ChangedJobError(f"{store} is a file, not a folder; give another output.path")
    if read_info(store) is not None:
        return
    shards = (
        (local / "shards").exists()
        if local is not None
        else next(store.sizes("shards"), None) is not None
    )
    theirs = (
        ["shards"]
        if shards
        else sorted(name for name, _ in store.sizes("") if name in WRITTEN and name != JOURNAL)
    )
    if theirs:
        raise ChangedJobError(
            f"{store} has {', '.join(theirs)} and is not a synthgen dataset (no readable dataset.json); give another output.path"
        )
