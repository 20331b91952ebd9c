"""The content of dataset.json, and whether a job can continue a dataset."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter

from synthgen.dataset.former_defaults import add_former_defaults
from synthgen.dataset.marker import MARKER, NUMBER
from synthgen.dataset.sample import IMAGE_FORMATS
from synthgen.dataset.versions import read_versions
from synthgen.errors import InputError
from synthgen.storage.base import Store
from synthgen.storage.local import LocalStore
from synthgen.strict_json import to_json

FORMATS_PATTERN = "|".join(IMAGE_FORMATS)
REVISIONS = ("pipeline.method_revision", "verify.revision")
"""Keys that count how often a result has changed without a key of its own."""
JOURNAL = "log.jsonl"  # the log of the runs (`synthgen.engine.run_log`)
FIRST_IMAGE = {"jpg": "first.jpg", "png": "first.png", "webp": "first.webp"}
"""By image format, the file with the first image that a run finished, to look at meanwhile."""

GENERATED_FILES = (
    "job.yaml",
    "index.json",
    "manifest.parquet",
    "README.md",
    "contact_sheet.jpg",
    *FIRST_IMAGE.values(),
    "report.html",
    "skipped.jsonl",
    "failures.jsonl",
    JOURNAL,
    "dataset.json",  # removed last: it shows that the other files are synthgen's
)


class ChangedJobError(InputError):
    """The output folder holds another job; the message names the keys that differ."""


def check_source(source: dict[str, Any]) -> dict[str, Any]:
    """Return what `synthgen.formats.coco.reader.make_head` returns.

    Raises:
        ValueError: it is something else.
    """
    types = {"head": dict, "file_names": bool, "annotation_ids": bool}
    if not all(isinstance(source.get(name), kind) for name, kind in types.items()):
        raise ValueError(f"not a mapping of {', '.join(types)}")
    return source


@dataclass(frozen=True)
class DatasetInfo:
    """The facts of a job that are kept in dataset.json.

    Attributes:
        asked: number of images that the job asks for.
        fingerprint: all keys of the job, dotted, with their values.
        image_format: jpg, png or webp. A dataset of imported images can have several, written as
            WebDataset writes alternatives ("jpg;png").
        imported: the format that the images were imported from; None if synthgen generated them.
        source: an imported COCO file without its images and annotations
            (`synthgen.formats.coco.reader.make_head`).
        sources: the datasets that were merged, in the order of their samples; None if the dataset
            was not merged.
    """

    name: str
    asked: Annotated[int, Field(ge=0)]
    fingerprint: dict[str, Any]
    category_ids: dict[str, Annotated[int, Field(ge=1)]]
    image_format: Annotated[str, Field(pattern=f"^({FORMATS_PATTERN})(;({FORMATS_PATTERN}))*$")]
    licence: str
    imported: str | None = None
    source: Annotated[dict[str, Any], AfterValidator(check_source)] | None = None
    sources: list[dict[str, Any]] | None = None

    @property
    def about(self) -> str:
        """A description of the dataset in one line."""
        if self.sources:
            names = ", ".join(str(source.get("name")) for source in self.sources)
            return f"{len(self.sources)} datasets merged by synthgen: {names}"
        if self.imported:
            return f"pictures and labels imported by synthgen ({self.imported})"
        return "synthetic images made by synthgen; boxes are known by construction"


INFO = TypeAdapter(DatasetInfo)


def read_info(store: Store) -> DatasetInfo | None:
    """Return the content of dataset.json, or None if there is no valid one."""
    try:
        return INFO.validate_json(store.read("dataset.json"), strict=True)
    except (OSError, ValueError):
        return None


def write_info(store: Store, info: DatasetInfo, counts: dict[str, Any]) -> None:
    """Replace dataset.json."""
    text = to_json({**vars(info), **counts, "versions": read_versions()}, indent=1) + "\n"
    store.write("dataset.json", text)


def refuse_changed(store: Store, info: DatasetInfo) -> None:
    """Refuse an output folder that has shards of another job, or more images than are asked for.

    A folder without a shard can be used by any job, so that a job whose first run failed early
    can be corrected.

    Raises:
        ChangedJobError: the job differs; the message names the keys that differ.
    """
    old = read_info(store)
    changed = [] if old is None else list_changes(old, info)
    if changed and has_shard(store):
        raise ChangedJobError(
            f"{store} holds another job: {'; '.join(changed)}. "
            "Give another output.path, or --overwrite"
        )


def has_shard(store: Store) -> bool:
    """Return whether any shard was ever committed: a marker exists, even if its shard is lost."""
    for name, _ in store.sizes("shards"):
        stem, dot, suffix = name.partition(".")
        if f"{dot}{suffix}" == MARKER and NUMBER.fullmatch(stem):
            return True
    return False


def list_changes(old: DatasetInfo, info: DatasetInfo) -> list[str]:
    """Return the differences of another job, each as `key: was …, is …`.

    A key that the old fingerprint lacks counts as its former default
    (`synthgen.dataset.former_defaults`).
    """
    new_values = json.loads(json.dumps(info.fingerprint))
    old_values = add_former_defaults(old.fingerprint, new_values)
    changed = []
    for key in sorted({*new_values, *old_values}):
        if new_values.get(key) != old_values.get(key):
            absent = "1" if key in REVISIONS else "not set"
            was = repr(old_values[key]) if key in old_values else absent
            now = f"is {new_values[key]!r}" if key in new_values else "is not set"
            changed.append(f"{key}: was {was}, {now}")
    if old.asked > info.asked:
        changed.append(
            f"images: was {old.asked}, is {info.asked}; a dataset can be extended, not shortened"
        )
    return changed


def refuse_foreign(store: Store) -> None:
    """Refuse an output folder with files that synthgen would replace but did not write.

    Raises:
        ChangedJobError: the folder has shards or other files of a dataset, and no valid
            dataset.json; or it is a file.
    """
    folder = store.root if isinstance(store, LocalStore) else None
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ChangedJobError(f"{store} is a file, not a folder; give another output.path")
    if read_info(store) is not None:
        return
    foreign = _find_generated_names(store)
    if foreign:
        raise ChangedJobError(
            f"{store} has {', '.join(foreign)} and is not a synthgen dataset "
            "(no readable dataset.json); give another output.path"
        )


def _find_generated_names(store: Store) -> list[str]:
    """Return the names in a folder that a dataset would replace; the log is only extended."""
    if isinstance(store, LocalStore):
        has_shards = (store.root / "shards").exists()
    else:
        has_shards = next(store.sizes("shards"), None) is not None
    if has_shards:
        return ["shards"]
    replaced = set(GENERATED_FILES) - {JOURNAL}
    return sorted(name for name, _ in store.sizes("") if name in replaced)
