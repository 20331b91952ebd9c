"""`synthgen import`: create a dataset from annotated images."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthgen.cli.command import (
    EXIT_INTERRUPTED,
    REPORT_IMAGES,
    Commands,
    Result,
    describe_interruption,
    make_progress_bar,
    parse_ids,
)
from synthgen.dataset.categories import COCO_IDS
from synthgen.errors import InputError
from synthgen.formats.base import import_options, list_readable_formats

if TYPE_CHECKING:
    from synthgen.engine.importing import ImportSpec
    from synthgen.formats.survey import Survey

log = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Add `import`."""
    sub = commands.add(
        "import",
        import_command,
        "create a dataset from annotated images: COCO, JSON lines, YOLO, Pascal VOC, labelme",
    )
    sub.add_argument(
        "source",
        metavar="SRC",
        type=Path,
        help="annotation file (COCO's instances.json, .jsonl, .parquet, data.yaml or obj.data), or "
        "a folder of annotations",
    )
    sub.add_argument("out", metavar="OUT", type=Path, help="output folder of the dataset")
    sub.add_argument(
        "--format",
        choices=tuple(list_readable_formats()),
        help="format of the source (default: detected)",
    )
    sub.add_argument(
        "--images",
        type=Path,
        help="folder of the images (default: the usual place for the format)",
    )
    sub.add_argument(
        "--split",
        metavar="SPLIT",
        help="split of a YOLO or VOC dataset: train, val, test or all",
    )
    for option in import_options():
        sub.add_argument(
            f"--{option.name.replace('_', '-')}", choices=option.choices, help=option.help
        )
    sub.add_argument(
        "--categories",
        action="append",
        metavar="NAME=NAME",
        help="rename a category, such as puppy=dog, or a YAML file of old and new names; can be "
        "repeated",
    )
    sub.add_argument(
        "--ids",
        action="append",
        metavar="NAME=ID",
        help="id of a category that COCO does not have, such as fox=101; can be repeated",
    )
    sub.add_argument(
        "--caption-column",
        default="caption",
        metavar="COLUMN",
        help="column of the captions in JSON lines and tables (default: caption)",
    )
    sub.add_argument(
        "--image-column",
        default="file_name",
        metavar="COLUMN",
        help="column of the image files in JSON lines and tables (default: file_name)",
    )
    sub.add_argument(
        "--annotation-column",
        default="custom_annotation",
        metavar="COLUMN",
        help="column of the annotations in JSON lines and tables (default: custom_annotation)",
    )
    sub.add_argument(
        "--shard-size",
        type=int,
        default=1000,
        metavar="N",
        help="number of images in each shard (default 1000)",
    )
    sub.add_argument("--licence", help="licence of the images (default: that of the source)")
    sub.add_argument(
        "--drop-empty",
        action="store_true",
        help="drop and count boxes without area, and keep their images",
    )
    sub.add_argument(
        "--clip",
        action="store_true",
        help="clip boxes that extend beyond their image by more than a pixel",
    )
    sub.add_argument(
        "--crowds",
        choices=("keep", "objects"),
        default="keep",
        help="keep crowds as crowds, or convert them to ordinary objects (default: keep)",
    )
    sub.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out invalid entries, and list them in OUT/skipped.jsonl",
    )
    sub.add_argument(
        "--overwrite",
        action="store_true",
        help="first remove the dataset in the output folder, if there is one",
    )


def import_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: what `finalize` returns, and {"output", "format", "made", "crowds", "clipped", "cut",
    "dropped", "masks_dropped", "left_out", "remarks", "anew", "skipped", "categories", "problems",
    "seconds", "interrupted"}.

    "crowds": boxes that are crowds; "clipped": boxes that extended beyond their image by at most a
    pixel; "cut": boxes that extended further (`--clip`); "dropped": boxes without area
    (`--drop-empty`); "masks_dropped": invalid masks of boxes that were kept; "left_out": {word:
    count} of what a box cannot represent (keypoints, confidence, point, line, …); "remarks": what
    was read from where, and what was not read; "anew": images that were encoded again; "skipped":
    images that were left out; "problems": [{"place", "why", "entry"}] of these images;
    "categories": {name: id}.
    """
    from dataclasses import asdict

    from synthgen.engine.importing import import_dataset
    from synthgen.report import write_report
    from synthgen.storage.location import open_store

    spec = create_import_spec(args)
    with make_progress_bar(args, "image") as bar:

        def report(phase: str, count: int) -> None:
            if args.quiet:  # a disabled bar does not have the attributes used below
                return
            if bar.desc != phase:
                bar.total = bar.n or None  # all images that were checked are written
                bar.n = 0
                bar.last_print_n = 0
                bar.set_description_str(phase, refresh=False)
            bar.update(count)

        result = import_dataset(spec, args.overwrite, report)
    survey = result.survey
    written = result.written
    data = {
        "output": str(args.out),
        "format": spec.source.form,
        **written.counts,
        "made": written.made,
        "crowds": survey.crowds,
        "cut": survey.cut,
        "dropped": survey.dropped,
        "masks_dropped": len(survey.lost_masks),
        "left_out": dict(survey.left_out),
        "remarks": list(spec.source.dataset.remarks),
        "clipped": survey.clipped,
        "anew": survey.anew,
        "skipped": len(survey.bad),
        "categories": result.ids,
        "problems": [asdict(problem) for problem in survey.problems],
        "seconds": round(written.seconds, 3),
        "interrupted": written.interrupted,
    }
    if written.interrupted:
        return EXIT_INTERRUPTED, data, [describe_interruption(data["images"], survey.count)]
    if written.made:
        write_report(open_store(args.out), REPORT_IMAGES)
    if survey.crowd_images or survey.crowd_categories:
        log.warning("%s", describe_crowds(survey))
    counts = f"{data['images']} images, {data['boxes']} boxes, {data['shards']} shards"
    lines = ["; ".join([f"{args.out}: {counts}", *describe_changes(survey)])]
    lines += describe_new_ids(spec, result.ids)
    lines += spec.source.dataset.remarks
    if survey.problems:
        lines.append(
            f"{len(survey.bad)} images left out, {len(survey.problems)} problems (also in "
            f"{args.out / 'skipped.jsonl'}):"
        )
        lines += map(str, survey.problems)
    return 0, data, lines


def describe_changes(survey: "Survey") -> list[str]:
    """Return notes on the annotations and images that were not taken over unchanged."""
    notes = []
    if survey.crowds:
        notes.append(f"{survey.crowds} of the boxes are crowds")
    if survey.clipped:
        notes.append(f"{survey.clipped} boxes clipped by at most a pixel")
    if survey.cut:
        notes.append(f"{survey.cut} boxes clipped by more than a pixel")
    if survey.dropped:
        notes.append(f"{survey.dropped} boxes without area dropped")
    if survey.lost_masks:
        notes.append(f"{len(survey.lost_masks)} masks dropped, the first: {survey.lost_masks[0]}")
    for what, count in survey.left_out.items():
        notes.append(f"{count} x {what} left out")
    if survey.anew:
        notes.append(f"{survey.anew} images encoded again")
    return notes


def describe_new_ids(spec: "ImportSpec", ids: dict[str, int]) -> list[str]:
    """Return a line on the ids that are new: not of COCO, the source or the command line."""
    known = COCO_IDS.keys() | spec.ids.keys() | spec.source.dataset.own_ids.keys()
    new = ", ".join(f"{name}={ids[name]}" for name in sorted(ids.keys() - known))
    if not new:
        return []
    return [f"ids of categories that COCO does not have: {new} (to change them: --ids NAME=ID)"]


def describe_crowds(survey: "Survey") -> str:
    """Return a warning of the images and categories that have only crowds."""
    affected = []
    if survey.crowd_images:
        affected.append(f"{survey.crowd_images} of {survey.count} images")
    if survey.crowd_categories:
        affected.append(f"the categories {', '.join(survey.crowd_categories)}")
    return (
        f"{' and '.join(affected)} have only crowds (iscrowd: 1), which layouts, training and "
        "`export --to yolo` leave out; --crowds objects converts them to objects"
    )


def create_import_spec(args: argparse.Namespace) -> Any:
    """Return the `ImportSpec` of the arguments.

    Raises:
        InputError: arguments are wrong; the message names all of them.
    """
    from synthgen.engine.importing import ImportSpec
    from synthgen.formats.entries import Policy
    from synthgen.formats.source import Columns, Source, locate_source

    categories, problems = parse_categories(args.categories or ())
    ids, id_problems = parse_ids(args)
    problems += id_problems
    if args.images is not None and not args.images.is_dir():
        problems.append(f"command line: --images: {args.images}: no such folder")
    if problems:
        raise InputError("\n".join(problems))
    columns = Columns(args.caption_column, args.image_column, args.annotation_column)
    form, path = locate_source(args.source, args.format)
    options: dict[str, str] = {}
    for option in import_options():
        value = getattr(args, option.name)
        if value is not None:
            options[option.name] = value
    fields = [name for name in ("images", "split") if getattr(args, name) is not None]
    for name in (*fields, *options):
        if not list_readable_formats()[form].takes(name):
            raise InputError(
                f"command line: --{name.replace('_', '-')}: not for {form}, the format of {path}"
            )
    policy = Policy(args.drop_empty, args.clip, args.crowds == "objects")
    source = Source(form, path, args.images, args.split, columns, ids, options)
    return ImportSpec(
        source, args.out, categories, ids, args.shard_size, args.skip_bad, args.licence, policy
    )


def parse_categories(texts: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the new names of --categories by the old ones, and the problems of --categories."""
    from synthgen.yamlfile import read_yaml

    categories: dict[str, str] = {}
    problems = []
    for text in texts:
        if "=" in text:
            old, new = text.rsplit("=", 1)
            pairs: Any = {old: new}
        else:
            pairs = read_yaml(Path(text)).data
        if isinstance(pairs, dict) and all(isinstance(v, str) and v for v in pairs.values()):
            categories.update(pairs)
        else:
            problems.append(
                f"command line: --categories: {text!r}: give puppy=dog, or a YAML file that maps "
                "names to names"
            )
    return categories, problems
