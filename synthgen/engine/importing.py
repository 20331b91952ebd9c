"""`synthgen import`: annotated pictures of other forms become a dataset like those that `synthgen run` makes.

The source is gone through twice: once to find all that is wrong with it, before anything is written, and once to write shard by
shard. So memory does not grow with the number of pictures, and an interrupted import goes on where it stopped.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from synthgen.annotations import Annotation, default_phrase
from synthgen.dataset.categories import COCO_IDS, told_ids
from synthgen.dataset.info import DatasetInfo, refuse_changed, refuse_foreign
from synthgen.dataset.sample import Sample
from synthgen.engine.driver import Assembly, RunResult, drive
from synthgen.errors import InputError
from synthgen.formats.base import import_options
from synthgen.formats.coco.reader import RESTORED, beyond
from synthgen.formats.entries import NO_AREA, OUTSIDE, BadEntryError, Entry, Policy
from synthgen.formats.images import image_bytes, taken_over
from synthgen.formats.source import Source
from synthgen.formats.survey import Report, Survey, good_entries, surveyed
from synthgen.geometry import xyxy_to_xywh
from synthgen.layouts.base import Layout
from synthgen.scenes.scene import Scene
from synthgen.storage.base import Store
from synthgen.storage.location import open_store

FIRST_ID = 101  # beyond COCO's, of names that COCO lacks
REMEDIES = {
    NO_AREA: "--drop-empty drops boxes of no area",
    OUTSIDE: "--clip clips boxes that stand out",
}
"""Which option helps against a problem, by words of its text."""


class BadEntriesError(InputError):
    """A source has entries that cannot be used: all of them are listed."""


@dataclass(frozen=True)
class ImportSpec:
    """What to import and how.

    Attributes:
        categories: names of the source to the names that the dataset has for them.
        ids: of names that COCO lacks.
        skip_bad: leave out what is bad, instead of refusing all.
        licence: of the pictures; null: what the source says.
        policy: what is done with labels that cannot be kept as they are.
    """

    source: Source
    out: Path
    categories: Mapping[str, str] = field(default_factory=dict)
    ids: Mapping[str, int] = field(default_factory=dict)
    shard_size: int = 1000
    skip_bad: bool = False
    licence: str | None = None
    policy: Policy = Policy()  # noqa: RUF009 (frozen)


@dataclass(frozen=True)
class ImportResult:
    """What an import found, and what it wrote."""

    survey: Survey
    written: RunResult
    ids: dict[str, int]


def import_dataset(
    spec: ImportSpec, overwrite: bool = False, report: Report | None = None
) -> ImportResult:
    """Write the dataset of a source, or what is missing of it.

    Args:
        overwrite: remove the dataset that is in the output folder first.
        report: called with what is done ("checked", "written") and how many pictures more.

    Raises:
        BadEntriesError: entries cannot be used, and are not to be skipped; nothing is written.
        UnreadableSourceError: the source cannot be read.
        InputError: a category has no id, or the output folder holds something else.
    """
    tell = report or (lambda what, count: None)
    refuse_within(spec)
    store = open_store(spec.out)
    refuse_foreign(store)
    survey = surveyed(spec.source, spec.policy, tell)
    refuse_bad(spec, survey)
    info = dataset_info(spec, survey, import_ids(spec, survey))
    if not overwrite:
        refuse_changed(store, info)
    entries = enumerate(good_entries(spec.source, survey, spec.policy))

    def samples(indices: range) -> Iterator[Sample]:
        for index, entry in entries:  # those of shards that are there are passed over
            if index in indices:
                yield as_sample(index, entry, spec.categories, info.category_ids)
            if index == indices[-1]:
                return

    written = drive(
        Assembly(store, info, as_job(spec, info), spec.shard_size, samples, overwrite, tell)
    )
    list_skipped(store, survey)
    return ImportResult(survey, written, info.category_ids)


def refuse_within(spec: ImportSpec) -> None:
    """Raise InputError if the output would lie over the source."""
    out = spec.out.resolve()
    for path in filter(None, (spec.source.path, spec.source.images)):
        if path.resolve() == out or path.resolve().is_relative_to(out):
            raise InputError(f"{spec.out}: holds the source {path}; give another output folder")


def refuse_bad(spec: ImportSpec, survey: Survey) -> None:
    """Raise BadEntriesError if something is bad that is not to be skipped, or nothing is left."""
    listed = [str(problem) for problem in survey.problems]
    if listed and not spec.skip_bad:
        also = f"; --skip-bad imports the other {survey.count}" if survey.count else ""
        also += "".join(
            f"; {option}"
            for words, option in REMEDIES.items()
            if any(words in line for line in listed)
        )
        raise BadEntriesError(
            "\n".join([*listed, f"{spec.source.path}: {len(listed)} problems{also}"])
        )
    if not survey.count:
        raise BadEntriesError(
            "\n".join([*listed, f"{spec.source.path}: holds no entry that can be used"])
        )


def list_skipped(store: Store, survey: Survey) -> None:
    """Write `skipped.jsonl`, a line a problem, if there are any."""
    lines = [json.dumps(asdict(problem)) + "\n" for problem in survey.problems]
    if lines:
        store.write("skipped.jsonl", "".join(lines))


def import_ids(spec: ImportSpec, survey: Survey) -> dict[str, int]:
    """The id of each category: as asked, COCO's, or that of the source where it is free.

    Of a form that has no numbers of classes (Pascal VOC, labelme), those that are left get numbers from FIRST_ID by name.

    Raises:
        InputError: names each category that has none, and each name to be mapped that the source does not have.
    """
    known = ", ".join(sorted(survey.names))
    problems = [
        f"--categories: {name!r} is not in {spec.source.path}; it has {known}"
        for name in spec.categories
        if name not in survey.names
    ]
    names = list(dict.fromkeys(spec.categories.get(name, name) for name in survey.names))
    own = {name: spec.ids[name] for name in names if name in spec.ids}
    taken = {
        *own.values(),
        *(COCO_IDS[name] for name in names if name in COCO_IDS and name not in own),
    }
    for name, number in spec.source.dataset.own_ids.items():
        if (
            name in names
            and name not in own
            and name not in COCO_IDS
            and number > 0
            and number not in taken
        ):
            own[name] = number
    free = (number for number in count(FIRST_ID) if number not in {*taken, *own.values()})
    lacking = [name for name in names if name not in own and name not in COCO_IDS]
    for name, number in zip(sorted(lacking), free, strict=False):
        if name.lower() not in COCO_IDS and not spec.source.format.has_ids:
            own[name] = number
        else:
            like = (
                f", or is it --categories {name!r}={name.lower()!r}?"
                if name.lower() in COCO_IDS
                else ""
            )
            problems.append(
                f"{name!r} is not a COCO category; give it an id: --ids {name!r}={number}{like}"
            )
    return told_ids(names, own, problems)


def dataset_info(spec: ImportSpec, survey: Survey, ids: dict[str, int]) -> DatasetInfo:
    """What dataset.json keeps of an import."""
    fingerprint = {
        "import.format": spec.source.form,
        "import.content": survey.content,
        "import.categories": dict(spec.categories),
        "import.ids": ids,
        "output.shard_size": spec.shard_size,
    }
    kinds = ";".join(kind for kind in ("jpg", "png", "webp") if survey.kinds[kind])
    name = re.sub(r"[^\w.-]+", "-", spec.out.resolve().name) or "imported"
    licence = spec.licence or spec.source.dataset.licence
    origin: dict[str, Any] = {
        "imported": f"{spec.source.form}: {spec.source.path.name}",
        "source": spec.source.dataset.head,
    }
    return DatasetInfo(name, survey.count, fingerprint, ids, kinds, licence, **origin)


def as_job(spec: ImportSpec, info: DatasetInfo) -> dict[str, Any]:
    """What job.yaml says of an import."""
    source = spec.source
    given = {
        "form": source.form,
        "source": str(source.path),
        "images": source.images and str(source.images),
        "split": source.split,
    }
    for option in import_options():
        given[option.name] = source.options.get(option.name)
    columns = asdict(source.columns) if source.format.takes("columns") else None
    more = {
        "columns": columns,
        "categories": dict(spec.categories),
        "ids": info.category_ids,
        "skip_bad": spec.skip_bad,
    }
    more |= asdict(spec.policy)
    return {
        "version": 1,
        "name": info.name,
        "import": {**given, **more},
        "output": {"shard_size": spec.shard_size},
    }


def as_sample(
    index: int, entry: Entry, categories: Mapping[str, str], ids: Mapping[str, int]
) -> Sample:
    """An entry as a dataset holds it.

    Raises:
        InputError: its picture has changed since it was looked at.
    """
    entry = replace(entry, names=tuple(categories.get(name, name) for name in entry.names))
    try:
        data, kind = taken_over(image_bytes(entry), (entry.width, entry.height), verify=False)
    except BadEntryError as error:
        raise InputError(f"{entry.place}: {error}; it was good when it was checked") from None
    boxes = tuple(annotations(entry, ids))
    shown = [i for i, a in enumerate(boxes) if not a.iscrowd]
    layout = Layout(entry.width, entry.height, entry.boxes.astype("float32"), entry.names).select(
        shown
    )
    prompt = entry.caption or Scene(layout, "").prompt
    return Sample(
        index,
        entry.width,
        entry.height,
        prompt,
        0,
        0,
        boxes,
        data,
        kind,
        source=as_source(entry, boxes),
    )


def as_source(entry: Entry, boxes: Sequence[Annotation]) -> str | None:
    """What the COCO file says of an entry that its sample does not, for `synthgen export` to write it as it was."""
    if entry.source is None:
        return None
    image, *found = entry.source
    ours = [box.to_coco() for box in boxes]
    known = [{key: box[key] for key in RESTORED if key in box} for box in ours]
    more = [beyond(record, box) for record, box in zip(found, known, strict=True)]
    said = beyond(image, {"width": entry.width, "height": entry.height})
    return json.dumps({"image": said, "annotations": more}, allow_nan=False)


def annotations(entry: Entry, ids: Mapping[str, int]) -> Iterator[Annotation]:
    """Yield the annotations of an entry; `area` is the source's own, else that of the mask, else that of the box."""
    for i, (bbox, name) in enumerate(
        zip(xyxy_to_xywh(entry.boxes).tolist(), entry.names, strict=True)
    ):
        x, y, width, height = (round(v, 6) for v in bbox)
        more = entry.more[i] if entry.more else {}
        mask_area = float(coco_mask.area(more["segmentation"])) if "segmentation" in more else 0.0
        yield Annotation(
            bbox=(x, y, width, height),
            category_id=ids[name],
            category=name,
            phrase=entry.phrases[i] if entry.phrases else default_phrase(name),
            **{"area": mask_area or width * height, **more},
        )
