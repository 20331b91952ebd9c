"""`synthgen import`: annotated images in another format become a dataset like those of a run.

The source is read twice: once to find everything that is wrong with it, before anything is written,
and once to write shard by shard. So the memory does not grow with the number of images, and an
interrupted import continues where it stopped.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from synthgen.annotations import Annotation, build_default_phrase
from synthgen.dataset.categories import COCO_IDS, find_given_category_ids
from synthgen.dataset.info import DatasetInfo, refuse_changed, refuse_foreign
from synthgen.dataset.sample import IMAGE_FORMATS, Sample
from synthgen.engine.assembly import Assembly
from synthgen.engine.driver import RunResult, drive
from synthgen.errors import InputError
from synthgen.formats.base import import_options
from synthgen.formats.coco.reader import RESTORED_KEYS, remove_known_values
from synthgen.formats.entries import NO_AREA, OUTSIDE_IMAGE, BadEntryError, Entry, Policy
from synthgen.formats.images import convert_image, read_image
from synthgen.formats.source import Source
from synthgen.formats.survey import Report, Survey, read_usable_entries, survey_source
from synthgen.geometry import xyxy_to_xywh
from synthgen.layouts.base import Layout
from synthgen.scenes.scene import Scene
from synthgen.storage.base import Store
from synthgen.storage.location import open_store

FIRST_ID = 101  # the first id above COCO's, for names that COCO lacks
REMEDIES = {
    NO_AREA: "--drop-empty drops boxes of no area",
    OUTSIDE_IMAGE: "--clip clips boxes that stand out",
}
"""The option that helps against a problem, by words of the problem's text."""


class BadEntriesError(InputError):
    """A source has entries that cannot be used; the message lists all of them."""


@dataclass(frozen=True)
class ImportSpec:
    """What to import, and how.

    Attributes:
        categories: names of the source to the names that the dataset has for them.
        ids: ids of names that COCO lacks.
        skip_bad: leave out bad entries instead of refusing the source.
        licence: the licence of the images; null to use that of the source.
        policy: what to do with labels that cannot be imported unchanged.
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
    """What an import found in its source, and what it wrote.

    Attributes:
        ids: the id of each category.
    """

    survey: Survey
    written: RunResult
    ids: dict[str, int]


def import_dataset(
    spec: ImportSpec, overwrite: bool = False, report: Report | None = None
) -> ImportResult:
    """Write the dataset of a source, or what is missing of it.

    Args:
        overwrite: remove the dataset that is in the output folder first.
        report: called with what was done ("checked", "written") and to how many more images.

    Raises:
        BadEntriesError: entries cannot be used, and may not be skipped; nothing is written.
        UnreadableSourceError: the source cannot be read.
        InputError: a category has no id, or the output folder holds something else.
    """
    report = report or (lambda action, images: None)
    refuse_output_over_source(spec)
    store = open_store(spec.out)
    refuse_foreign(store)
    survey = survey_source(spec.source, spec.policy, report)
    refuse_bad_entries(spec, survey)
    info = build_info(spec, survey, import_ids(spec, survey))
    if not overwrite:
        refuse_changed(store, info)
    entries = enumerate(read_usable_entries(spec.source, survey, spec.policy))

    def read_samples(indices: range) -> Iterator[Sample]:
        for index, entry in entries:  # entries of shards that exist are skipped
            if index in indices:
                yield build_sample(index, entry, spec.categories, info.category_ids)
            if index == indices[-1]:
                return

    job = build_job(spec, info)
    written = drive(Assembly(store, info, job, spec.shard_size, read_samples, overwrite, report))
    write_problems(store, survey)
    return ImportResult(survey, written, info.category_ids)


def refuse_output_over_source(spec: ImportSpec) -> None:
    """Raise InputError if the output folder contains the source."""
    out = spec.out.resolve()
    for path in (spec.source.path, spec.source.images):
        if path is not None and path.resolve().is_relative_to(out):
            raise InputError(f"{spec.out}: holds the source {path}; give another output folder")


def refuse_bad_entries(spec: ImportSpec, survey: Survey) -> None:
    """Raise BadEntriesError if bad entries may not be skipped, or if no entry can be used."""
    problems = [str(problem) for problem in survey.problems]
    if problems and not spec.skip_bad:
        hints = []
        if survey.count:
            hints.append(f"--skip-bad imports the other {survey.count}")
        for words, hint in REMEDIES.items():
            if any(words in problem for problem in problems):
                hints.append(hint)
        summary = "; ".join([f"{len(problems)} problems", *hints])
        raise BadEntriesError("\n".join([*problems, f"{spec.source.path}: {summary}"]))
    if not survey.count:
        summary = f"{spec.source.path}: holds no entry that can be used"
        raise BadEntriesError("\n".join([*problems, summary]))


def write_problems(store: Store, survey: Survey) -> None:
    """Write `skipped.jsonl`, one problem a line, if there are any."""
    lines = [json.dumps(asdict(problem)) + "\n" for problem in survey.problems]
    if lines:
        store.write("skipped.jsonl", "".join(lines))


def import_ids(spec: ImportSpec, survey: Survey) -> dict[str, int]:
    """Return the id of each category.

    It is the id of the command line, otherwise COCO's, otherwise that of the source if no other
    category has it. If the format of the source has no ids (Pascal VOC, labelme), the remaining
    categories get ids from FIRST_ID on, in the order of their names.

    Raises:
        InputError: it names each category that has no id, and each name to rename that the source
            does not have.
    """
    known = ", ".join(sorted(survey.names))
    problems = []
    for name in spec.categories:
        if name not in survey.names:
            problems.append(f"--categories: {name!r} is not in {spec.source.path}; it has {known}")
    names = list(dict.fromkeys(spec.categories.get(name, name) for name in survey.names))
    ids = {name: spec.ids[name] for name in names if name in spec.ids}
    taken = set(ids.values())
    for name in names:
        if name in COCO_IDS and name not in ids:
            taken.add(COCO_IDS[name])
    for name, number in spec.source.dataset.own_ids.items():
        needs_id = name in names and name not in ids and name not in COCO_IDS
        if needs_id and number > 0 and number not in taken:
            ids[name] = number
    taken |= set(ids.values())
    free_ids = (number for number in count(FIRST_ID) if number not in taken)
    lacking = [name for name in names if name not in ids and name not in COCO_IDS]
    for name in sorted(lacking):
        number = next(free_ids)
        in_coco = name.lower() in COCO_IDS  # true if COCO spells the name differently
        if not in_coco and not spec.source.format.has_ids:
            ids[name] = number
            continue
        problem = f"{name!r} is not a COCO category; give it an id: --ids {name!r}={number}"
        if in_coco:
            problem += f", or is it --categories {name!r}={name.lower()!r}?"
        problems.append(problem)
    return find_given_category_ids(names, ids, problems)


def build_info(spec: ImportSpec, survey: Survey, ids: dict[str, int]) -> DatasetInfo:
    """Return the content of dataset.json for an import."""
    fingerprint = {
        "import.format": spec.source.form,
        "import.content": survey.content,
        "import.categories": dict(spec.categories),
        "import.ids": ids,
        "output.shard_size": spec.shard_size,
    }
    image_formats = [name for name in IMAGE_FORMATS if survey.kinds[name]]
    return DatasetInfo(
        name=re.sub(r"[^\w.-]+", "-", spec.out.resolve().name) or "imported",
        asked=survey.count,
        fingerprint=fingerprint,
        category_ids=ids,
        image_format=";".join(image_formats),
        licence=spec.licence or spec.source.dataset.licence,
        imported=f"{spec.source.form}: {spec.source.path.name}",
        source=spec.source.dataset.head,
    )


def build_job(spec: ImportSpec, info: DatasetInfo) -> dict[str, Any]:
    """Return the content of job.yaml for an import."""
    source = spec.source
    settings: dict[str, Any] = {
        "form": source.form,
        "source": str(source.path),
        "images": source.images and str(source.images),
        "split": source.split,
    }
    for option in import_options():
        settings[option.name] = source.options.get(option.name)
    settings["columns"] = asdict(source.columns) if source.format.takes("columns") else None
    settings["categories"] = dict(spec.categories)
    settings["ids"] = info.category_ids
    settings["skip_bad"] = spec.skip_bad
    settings |= asdict(spec.policy)
    return {
        "version": 1,
        "name": info.name,
        "import": settings,
        "output": {"shard_size": spec.shard_size},
    }


def build_sample(
    index: int, entry: Entry, categories: Mapping[str, str], ids: Mapping[str, int]
) -> Sample:
    """Return the sample of an entry.

    Args:
        categories: names of the source to names of the dataset.

    Raises:
        InputError: the image has changed since the source was checked.
    """
    entry = replace(entry, names=tuple(categories.get(name, name) for name in entry.names))
    try:
        data, image_format = convert_image(
            read_image(entry), (entry.width, entry.height), verify=False
        )
    except BadEntryError as error:
        raise InputError(f"{entry.place}: {error}; it was good when it was checked") from None
    labels = tuple(annotations(entry, ids))
    objects = [i for i, label in enumerate(labels) if not label.iscrowd]
    layout = Layout(entry.width, entry.height, entry.boxes.astype("float32"), entry.names)
    scene = Scene(layout.select(objects), "")
    return Sample(
        index=index,
        width=entry.width,
        height=entry.height,
        prompt=entry.caption or scene.prompt,
        seed=0,
        attempt=0,
        annotations=labels,
        image=data,
        image_format=image_format,
        source=build_source(entry, labels),
    )


def build_source(entry: Entry, labels: Sequence[Annotation]) -> str | None:
    """Return what the COCO file says of an entry beyond its sample, as JSON.

    With it, `synthgen export` writes the entry as it was.
    """
    if entry.source is None:
        return None
    image, *records = entry.source
    remainders = []
    for record, label in zip(records, labels, strict=True):
        known = label.to_coco()
        restored = {key: known[key] for key in RESTORED_KEYS if key in known}
        remainders.append(remove_known_values(record, restored))
    image_remainder = remove_known_values(image, {"width": entry.width, "height": entry.height})
    return json.dumps({"image": image_remainder, "annotations": remainders}, allow_nan=False)


def annotations(entry: Entry, ids: Mapping[str, int]) -> Iterator[Annotation]:
    """Yield the annotations of an entry.

    `area` is that of the source, otherwise that of the mask, otherwise that of the box.
    """
    boxes = xyxy_to_xywh(entry.boxes).tolist()
    for i, (box, name) in enumerate(zip(boxes, entry.names, strict=True)):
        x, y, width, height = (round(value, 6) for value in box)
        fields = entry.more[i] if entry.more else {}
        area = width * height
        if "segmentation" in fields:
            area = float(coco_mask.area(fields["segmentation"])) or area
        yield Annotation(
            bbox=(x, y, width, height),
            category_id=ids[name],
            category=name,
            phrase=entry.phrases[i] if entry.phrases else build_default_phrase(name),
            **{"area": area, **fields},
        )
