"""`synthgen import`: make a dataset of annotated images."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthgen.cli.command import EXIT_INTERRUPTED, SHOWN, Commands, Result, given_ids, progress_bar
from synthgen.dataset.categories import COCO_IDS
from synthgen.errors import InputError
from synthgen.formats.base import import_options, readable_formats

if TYPE_CHECKING:
    from synthgen.engine.importing import ImportSpec
    from synthgen.formats.survey import Survey

log = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Add `import`."""
    sub = commands.add(
        "import",
        import_command,
        "make a dataset of annotated pictures: COCO, JSON lines, YOLO, VOC, labelme",
    )
    sub.add_argument(
        "source",
        metavar="SRC",
        type=Path,
        help="COCO's instances.json, .jsonl, .parquet, data.yaml or obj.data; or a folder",
    )
    sub.add_argument("out", metavar="OUT", type=Path, help="output folder")
    sub.add_argument(
        "--format", choices=tuple(readable_formats()), help="what the source is (default: guessed)"
    )
    sub.add_argument(
        "--images", type=Path, help="folder of the pictures (default: where they usually lie)"
    )
    sub.add_argument(
        "--split", metavar="SPLIT", help="of a YOLO or VOC dataset: train, val, test or all"
    )
    for option in import_options():
        sub.add_argument(
            f"--{option.name.replace('_', '-')}", choices=option.choices, help=option.help
        )
    sub.add_argument(
        "--categories",
        action="append",
        metavar="NAME=NAME",
        help="puppy=dog, or a YAML file of such; repeatable",
    )
    sub.add_argument(
        "--ids", action="append", metavar="NAME=ID", help="id of a name that COCO lacks; repeatable"
    )
    sub.add_argument(
        "--caption-column",
        default="caption",
        metavar="COLUMN",
        help="of JSON lines (default: caption)",
    )
    sub.add_argument(
        "--image-column", default="file_name", metavar="COLUMN", help="default: file_name"
    )
    sub.add_argument(
        "--annotation-column",
        default="custom_annotation",
        metavar="COLUMN",
        help="default: custom_annotation",
    )
    sub.add_argument(
        "--shard-size", type=int, default=1000, metavar="N", help="images a shard (default 1000)"
    )
    sub.add_argument("--licence", help="of the pictures (default: what the source says)")
    sub.add_argument(
        "--drop-empty",
        action="store_true",
        help="drop boxes of no area, and count them; their images stay",
    )
    sub.add_argument(
        "--clip",
        action="store_true",
        help="clip boxes that stand out of their image by more than a pixel",
    )
    sub.add_argument(
        "--crowds",
        choices=("keep", "objects"),
        default="keep",
        help="objects: take crowds as objects",
    )
    sub.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out entries that are bad, and list them in OUT/skipped.jsonl",
    )
    sub.add_argument(
        "--overwrite",
        action="store_true",
        help="remove the dataset that is in the output folder first",
    )


def import_command(args: argparse.Namespace) -> Result:
    """`--json`: what `finalize` gives, and {"output", "format", "made", "crowds", "clipped", "cut", "dropped",
    "masks_dropped", "left_out", "remarks", "anew", "skipped", "categories", "problems", "seconds", "interrupted"}.

    "crowds": how many of the boxes are crowds; "clipped": boxes that stuck out by a pixel at most; "cut": boxes that stood out
    further (`--clip`); "dropped": boxes of no area (`--drop-empty`); "masks_dropped": masks that are none, of boxes that were
    kept; "left_out": {word: count} of what no box can hold (keypoints, confidence, point, line, …); "remarks": what was read
    from where, and what was not; "anew": pictures that were encoded anew; "skipped": pictures left out; "problems": [{"place",
    "why", "entry"}] of them; "categories": {name: id}.
    """
    from dataclasses import asdict

    from synthgen.engine.importing import import_dataset
    from synthgen.report import write_report
    from synthgen.storage.location import open_store

    spec = import_spec(args)
    with progress_bar(args, "image") as bar:

        def report(what: str, count: int) -> None:
            if args.quiet:  # a bar that is not shown knows of nothing
                return
            if bar.desc != what:
                bar.total, bar.n, bar.last_print_n = (
                    bar.n or None,
                    0,
                    0,
                )  # what was checked is what will be written
                bar.set_description_str(what, refresh=False)
            bar.update(count)

        result = import_dataset(spec, args.overwrite, report)
    survey, written = result.survey, result.written
    data = {
        "output": str(args.out),
        "format": spec.source.form,
        **written.counts,
        "made": written.made,
    }
    data |= {
        "crowds": survey.crowds,
        "cut": survey.cut,
        "dropped": survey.dropped,
        "masks_dropped": len(survey.lost_masks),
    }
    data |= {"left_out": dict(survey.left_out), "remarks": list(spec.source.dataset.remarks)}
    data |= {
        "clipped": survey.clipped,
        "anew": survey.anew,
        "skipped": len(survey.bad),
        "categories": result.ids,
    }
    data |= {
        "problems": [asdict(p) for p in survey.problems],
        "seconds": round(written.seconds, 3),
        "interrupted": written.interrupted,
    }
    if written.interrupted:
        return (
            EXIT_INTERRUPTED,
            data,
            [
                f"stopped; {data['images']} of {survey.count} images are done; the same command goes on"
            ],
        )
    if written.made:
        write_report(open_store(args.out), SHOWN)
    if survey.crowd_images or survey.crowd_names:
        log.warning("%s", crowds_told(survey))
    notes = [f"{survey.crowds} of the boxes are crowds"] if survey.crowds else []
    notes += [f"{survey.clipped} boxes clipped by a pixel at most"] if survey.clipped else []
    notes += [f"{survey.cut} boxes clipped that stood out further"] if survey.cut else []
    notes += [f"{survey.dropped} boxes of no area dropped"] if survey.dropped else []
    notes += (
        [f"{len(survey.lost_masks)} masks dropped, the first: {survey.lost_masks[0]}"]
        if survey.lost_masks
        else []
    )
    notes += [f"{count} x {what} left out" for what, count in survey.left_out.items()]
    notes += [f"{survey.anew} pictures encoded anew"] if survey.anew else []
    text = "; ".join(
        [
            f"{args.out}: {data['images']} images, {data['boxes']} boxes, {data['shards']} shards",
            *notes,
        ]
    )
    why = f"{len(survey.bad)} pictures left out, {len(survey.problems)} problems (also in {args.out / 'skipped.jsonl'}):"
    left_out = [why] if survey.problems else []
    told = [*ids_told(spec, result.ids), *spec.source.dataset.remarks]
    return 0, data, [text, *told, *left_out, *map(str, survey.problems)]


def ids_told(spec: "ImportSpec", ids: dict[str, int]) -> list[str]:
    """What is said of ids that neither COCO, nor the source, nor the command line has; none: nothing."""
    known = COCO_IDS.keys() | spec.ids.keys() | spec.source.dataset.own_ids.keys()
    given = ", ".join(f"{name}={ids[name]}" for name in sorted(ids.keys() - known))
    return [f"ids of names that COCO lacks: {given} (others: --ids NAME=ID)"] if given else []


def crowds_told(survey: "Survey") -> str:
    """What is said of images and categories that have crowds alone."""
    found = [f"{survey.crowd_images} of {survey.count} images"] if survey.crowd_images else []
    found += [f"the categories {', '.join(survey.crowd_names)}"] if survey.crowd_names else []
    what = "layouts, training and `export --to yolo` leave them out; --crowds objects takes them as objects"
    return f"crowds (iscrowd: 1) are all that {' and '.join(found)} have: {what}"


def import_spec(args: argparse.Namespace) -> Any:
    """What the arguments of `synthgen import` ask for.

    Raises:
        InputError: names each argument that is wrong.
    """
    from synthgen.engine.importing import ImportSpec
    from synthgen.formats.entries import Policy
    from synthgen.formats.source import Columns, Source, locate
    from synthgen.yamlfile import read_yaml

    problems, categories = [], {}
    for text in args.categories or ():
        pairs = dict([text.rsplit("=", 1)]) if "=" in text else read_yaml(Path(text)).data
        if isinstance(pairs, dict) and all(isinstance(v, str) and v for v in pairs.values()):
            categories.update(pairs)
        else:
            problems.append(
                f"command line: --categories: {text!r}: give puppy=dog, or a YAML file that maps names to names"
            )
    ids, wrong = given_ids(args)
    problems += wrong
    if args.images is not None and not args.images.is_dir():
        problems.append(f"command line: --images: {args.images}: no such folder")
    if problems:
        raise InputError("\n".join(problems))
    columns = Columns(args.caption_column, args.image_column, args.annotation_column)
    form, path = locate(args.source, args.format)
    options: dict[str, str] = {}
    for option in import_options():
        if getattr(args, option.name) is not None:
            options[option.name] = getattr(args, option.name)
    fields = [name for name in ("images", "split") if getattr(args, name) is not None]
    for name in (*fields, *options):
        if not readable_formats()[form].takes(name):
            raise InputError(
                f"command line: --{name.replace('_', '-')}: not for {form}, which {path} is"
            )
    policy = Policy(args.drop_empty, args.clip, args.crowds == "objects")
    source = Source(form, path, args.images, args.split, columns, ids, options)
    return ImportSpec(
        source, args.out, categories, ids, args.shard_size, args.skip_bad, args.licence, policy
    )
