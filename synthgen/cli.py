"""The commands. Whatever is heavy is imported by the command that needs it."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from synthgen import __version__
from synthgen.errors import InputError

if TYPE_CHECKING:
    from synthgen.config import Job

SHOWN = 200  # pictures in the report that `run` writes: it is made anew with each extension of a dataset
EXIT_FAULT, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
WHISPER = "openai/whisper-base.en"
Result = tuple[int, dict[str, Any], list[str]]


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 faults or failure, 2 bad input, 130 interrupted."""
    args = parse(argv)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints there what its workers do; stdout is ours
            status, data, lines = args.command(args)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except InputError as error:
        print(*(f"synthgen: {line}" for line in error.problems), sep="\n", file=sys.stderr)
        status, data, lines = EXIT_USAGE, {"error": error.problems}, []
    if args.json:
        print(json.dumps(data))
    elif lines:
        print(*lines, sep="\n")
    return int(status)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; `key=value` may stand before and after options, which argparse alone would not take."""
    args, rest = parser().parse_known_args(argv)
    if rest and (not hasattr(args, "overrides") or any(r.startswith("-") or "=" not in r for r in rest)):
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="synthgen", description="Labelled detection datasets that do not exist yet.")
    top.add_argument("--version", action="version", version=f"synthgen {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], Result], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        sub.add_argument("--json", action="store_true", help="one JSON object on stdout instead of text")
        return sub

    def job_command(name: str, run: Callable[[argparse.Namespace], Result], text: str) -> argparse.ArgumentParser:
        sub = command(name, run, text)
        sub.add_argument("job", metavar="JOB", help="job file, or the name of a shipped job")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="such as images=1000 pipeline.steps=12")
        return sub

    def speech_option(sub: argparse.ArgumentParser) -> None:
        text = f"a Whisper: Hugging Face id, or folder (transformers', or one for faster-whisper); default: {WHISPER}"
        sub.add_argument("--speech", metavar="MODEL", default=WHISPER, help=text)

    def spoken(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        either = sub.add_mutually_exclusive_group()
        either.add_argument("--voice", type=Path, metavar="WAV", help='recording of such as "one hundred dogs in a park"')
        either.add_argument("--say", metavar="TEXT", help="the same in writing")
        speech_option(sub)
        return sub

    sub = spoken(job_command("run", run_command, "make the dataset, or what is missing of it"))
    sub.add_argument("--address", help="address of a running Ray cluster (default: RAY_ADDRESS, else Ray on this machine)")
    sub.add_argument("--overwrite", action="store_true", help="remove the dataset that is in the output folder first")
    sub = spoken(job_command("preview", preview_command, "draw sampled layouts; loads no model"))
    sub.add_argument("-n", type=int, default=8, help="how many layouts (default 8)")
    sub.add_argument("-o", "--output", type=Path, help="PNG to write (default: preview-NAME.png)")
    sub = spoken(job_command("plan", plan_command, "time a few images and tell what the whole job will take"))
    sub.add_argument("--address", help=argparse.SUPPRESS)
    job_command("train", train_command, "train a checkpoint, or go on with it")
    sub = command("transcribe", transcribe_command, "tell what a recording says, and what a job would make of it")
    sub.add_argument("audio", type=Path, metavar="WAV", help="PCM or floating point, at most 30 s")
    speech_option(sub)
    sub = command("evaluate", evaluate_command, "hold a dataset against a detector, against CLIP, and against real pictures")
    sub.add_argument("out", metavar="OUT", help="output folder of `synthgen run`; or a job, which is run first")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="of the job")
    sub.add_argument("--detector", default="centernet-tiny", help="embedded, folder or Hub id (default: centernet-tiny)")
    sub.add_argument("--threshold", type=float, default=0.3, help="score from which a detection counts (default 0.3)")
    sub.add_argument("--clip", help="folder or Hub id of a CLIP; without one its figures are not measured")
    sub.add_argument("--reference", type=Path, help="real pictures, a folder or a dataset; without them theirs are not measured")
    sub.add_argument("--encoder", default="efficientnet-lite0", help="what they are compared in: folder or Hub id")
    sub.add_argument("--objects", action="store_true", help="compare what is in the boxes instead of whole pictures")
    sub.add_argument("--limit", type=int, help="look at so many images")
    sub = command("benchmark", benchmark_command, "train a detector on real, synthetic and mixed pictures: do these help?")
    sub.add_argument("--real", type=Path, required=True, help="dataset of real pictures (synthgen import makes one)")
    sub.add_argument("--synthetic", type=Path, required=True, help="output folder of `synthgen run`")
    sub.add_argument("--test", type=Path, help="dataset of other real pictures; without one a part of --real is held out")
    sub.add_argument("--hold-out", type=int, default=5, metavar="N", help="that part: every N-th picture (default 5)")
    sub.add_argument("--ratios", type=float, nargs="+", default=[0.5], help="shares of synthetic scenes when mixed (default 0.5)")
    sub.add_argument("--seeds", type=int, default=3, help="trainings of each (default 3)")
    sub.add_argument("--detector", default="train-detector", help="training job of the detector (default: train-detector)")
    sub.add_argument("--steps", type=int, help="steps of each training (default: the job's)")
    sub.add_argument("-o", "--output", type=Path, required=True, help="folder for the trainings, results.json and benchmark.png")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="of the training job")
    sub = command("report", report_command, "write report.html, a page to look at a dataset with")
    sub.add_argument("out", metavar="OUT", type=Path, help="output folder of `synthgen run`")
    sub.add_argument("--most", type=int, default=2000, help="pictures that the page shows (default 2000)")
    sub = command("fit", fit_command, "learn what the layouts of a dataset are like, for the sampler `fit`")
    sub.add_argument("data", metavar="DATA", help="COCO's instances.json, .jsonl, .parquet, or the output of `synthgen run`")
    sub.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    sub = command("import", import_command, "make a dataset of annotated pictures: COCO, JSON lines or YOLO")
    sub.add_argument(
        "source", metavar="SRC", type=Path, help="COCO's instances.json, .jsonl, .parquet or data.yaml; or its folder"
    )
    sub.add_argument("out", metavar="OUT", type=Path, help="output folder")
    sub.add_argument("--format", choices=("coco", "jsonl", "yolo"), help="what the source is (default: guessed)")
    sub.add_argument("--images", type=Path, help="folder of the pictures (default: where they usually lie)")
    sub.add_argument("--split", choices=("train", "val", "test", "all"), help="of a YOLO dataset")
    sub.add_argument("--categories", action="append", metavar="NAME=NAME", help="puppy=dog, or a YAML file of such; repeatable")
    sub.add_argument("--ids", action="append", metavar="NAME=ID", help="id of a name that COCO lacks; repeatable")
    sub.add_argument("--caption-column", default="caption", metavar="COLUMN", help="of JSON lines (default: caption)")
    sub.add_argument("--image-column", default="file_name", metavar="COLUMN", help="default: file_name")
    sub.add_argument("--annotation-column", default="custom_annotation", metavar="COLUMN", help="default: custom_annotation")
    sub.add_argument("--shard-size", type=int, default=1000, metavar="N", help="images a shard (default 1000)")
    sub.add_argument("--licence", help="of the pictures (default: what the source says)")
    sub.add_argument("--skip-bad", action="store_true", help="leave out entries that are bad, and list them in OUT/skipped.jsonl")
    sub.add_argument("--overwrite", action="store_true", help="remove the dataset that is in the output folder first")
    for name, run, text in (
        ("check", check_command, "look for anything wrong with a dataset"),
        ("finalize", finalize_command, "write the dataset files for what is committed so far"),
    ):
        command(name, run, text).add_argument("out", type=Path, metavar="OUT", help="output folder")
    command("list", list_command, "samplers, methods and recipes")
    return top


def load(args: argparse.Namespace) -> tuple["Job", dict[str, Any]]:
    """The job, and {"spoken": the fields of `synthgen.voice.Spoken`} if something was said to it, which is shown."""
    from synthgen.config import find_recipe, load_job
    from synthgen.voice import Spoken

    find_recipe("job", args.job)  # a wrong name is told before a recording is listened to
    said = None if args.say is None else Spoken(text=args.say)
    if args.voice is not None:
        from synthgen.voice.speech import hear

        said = hear(args.voice, args.speech)
        print(said.heard(), file=sys.stderr)
    job = load_job(args.job, args.overrides, said)
    if said is None or job.spoken is None:
        return job, {}
    print(*job.spoken.understood(), sep="\n", file=sys.stderr)
    return job, {"spoken": job.spoken.model_dump(mode="json")}


def run_command(args: argparse.Namespace) -> Result:
    """`--json`: {"output", "images", "boxes", "shards", "bytes", "verified", "complete", "made", "seconds", "interrupted"}.

    With --voice or --say "spoken" too (`load`), as with `preview` and `plan`.
    """
    job, spoken = load(args)  # before the heavy imports: a mistake is told at once
    from synthgen.engine.pool import ShardFailedError
    from synthgen.engine.run import run
    from synthgen.report import write_report

    bar = _ProgressBar()
    try:
        result = run(job, args.address, args.overwrite, bar.open)
    except ShardFailedError as error:
        text = f"{error}\nAll finished shards are kept; run the same command again to go on."
        return EXIT_FAULT, {"error": [str(error)]}, [text]
    finally:
        bar.close()
    data = {"output": job.output.path, **result.counts, "made": result.made, "seconds": round(result.seconds, 3)}
    data |= {"interrupted": result.interrupted, **spoken}
    if result.interrupted:
        overrides = "".join(f" {o}" for o in args.overrides) + (f" --say {quote(spoken['spoken']['text'])}" if spoken else "")
        text = f"stopped; {data['images']} of {job.images} images are done. To go on: synthgen run {args.job}{overrides}"
        return EXIT_INTERRUPTED, data, [text]
    if result.made and result.counts["complete"]:
        write_report(Path(job.output.path), SHOWN)
    rate = f", {result.made} made now at {result.made / result.seconds:.2f} images/s" if result.made else ", all were there"
    return 0, data, [f"{job.output.path}: {data['images']} images, {data['boxes']} boxes, {data['shards']} shards{rate}"]


class _ProgressBar:
    """Images done, images/s and time left, on stderr."""

    def __init__(self) -> None:
        self.bar: Any = None

    def open(self, total: int, done: int) -> Callable[[int], None]:
        from tqdm import tqdm

        self.bar = tqdm(total=total, initial=done, unit="image", smoothing=0.05, dynamic_ncols=True)
        return self.advance

    def advance(self, images: int) -> None:
        self.bar.update(images)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def preview_command(args: argparse.Namespace) -> Result:
    """`--json`: {"path", "layouts", "boxes", "coverage"}."""
    from synthgen.config import ConfigError

    job, spoken = load(args)
    from synthgen.engine.worker import draw_scene
    from synthgen.preview import write_preview

    if args.n < 1:
        raise ConfigError([f"command line: -n: {args.n} must be at least 1"])
    layouts = [draw_scene(job, i).layout for i in range(args.n)]
    path = args.output or Path(f"preview-{job.name}.png")
    write_preview(path, layouts, job.layout.examples())
    coverage = sum(layout.coverage() for layout in layouts) / len(layouts)
    data = {"path": str(path), "layouts": len(layouts), "boxes": sum(map(len, layouts)), "coverage": round(coverage, 4)}
    data |= spoken
    return 0, data, [f"{path}: {data['layouts']} layouts, {data['boxes']} boxes, mean coverage {coverage:.1%}"]


def evaluate_command(args: argparse.Namespace) -> Result:
    """`--json`: what `synthgen.evaluate.dataset.evaluate` returns."""
    from synthgen.config import ConfigError
    from synthgen.evaluate.reference import Reference
    from synthgen.verify.verifiers.clip import Spec as Clip
    from synthgen.verify.verifiers.detector import Spec as Detector

    if not 0 <= args.threshold <= 1:
        raise ConfigError([f"command line: --threshold: {args.threshold:g} must be in [0, 1]"])
    detector = Detector(model=args.detector, threshold=args.threshold)
    clip = None if args.clip is None else Clip(model=args.clip)
    for spec in (detector, clip):
        if spec is not None:
            spec.folder()  # says what is wrong with the name
    reference = None if args.reference is None else Reference(args.reference, args.encoder, args.objects)
    if reference is not None and (problems := reference.check()):
        raise ConfigError([f"command line: {problem}" for problem in problems])
    out, (status, data, made) = dataset_of(args)
    if status:
        return status, data, made
    from synthgen.evaluate.dataset import evaluate

    data = evaluate(out, detector, clip, reference, args.limit)
    return 0, data, [*made, *(f"{name:<12} {value}" for name, value in data.items())]


def dataset_of(args: argparse.Namespace) -> tuple[Path, Result]:
    """The dataset that is meant by `out`; if that is a job it is run, and what came of it is returned too."""
    from synthgen.config import ConfigError, load_job
    from synthgen.shards.dataset import read_info

    out = Path(args.out)
    if not out.is_dir():
        job = load_job(args.out, args.overrides)
        run_args = parse(["run", args.out, *args.overrides])
        return Path(job.output.path), run_command(run_args)
    if args.overrides:
        raise ConfigError([f"{out}: a dataset; {args.overrides[0]!r} is for jobs"])
    if read_info(out) is None:
        raise ConfigError([f"{out}: not a synthgen dataset (no readable dataset.json)"])
    return out, (0, {}, [])


def report_command(args: argparse.Namespace) -> Result:
    """`--json`: {"path", "images", "shown", "bytes"}."""
    from synthgen.report import write_report

    counts = write_report(args.out, args.most)
    path = args.out / "report.html"
    text = f"{path}: {counts['shown']} of {counts['images']} images, {counts['bytes'] / 1e6:.1f} MB"
    return 0, {"path": str(path), **counts}, [text]


def fit_command(args: argparse.Namespace) -> Result:
    """`--json`: {"path", "pictures", "boxes", "categories"}."""
    from synthgen.config import ConfigError
    from synthgen.layouts.fit import learn
    from synthgen.shards.store import write_text

    try:
        model = learn(args.data)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    write_text(args.output, json.dumps(model) + "\n")
    boxes = sum(sum(counts.values()) for counts in model["counts"])
    data = {"path": str(args.output), "pictures": model["pictures"], "boxes": boxes, "categories": list(model["boxes"])}
    text = f"{args.output}: {model['pictures']} pictures, {boxes} boxes, {len(model['boxes'])} categories"
    return 0, data, [text, f"use it: synthgen preview JOB layout=fit layout.model={args.output}"]


def plan_command(args: argparse.Namespace) -> Result:
    """`--json`: the fields of `synthgen.engine.plan.Plan`."""
    from dataclasses import asdict

    job, spoken = load(args)
    from synthgen.engine.plan import plan

    estimate = plan(job, args.address)
    return 0, {**asdict(estimate), **spoken}, estimate.lines()


def transcribe_command(args: argparse.Namespace) -> Result:
    """`--json`: the fields of `synthgen.voice.Spoken`."""
    from synthgen.shards.categories import COCO_IDS
    from synthgen.voice.speech import hear
    from synthgen.voice.understand import understand

    spoken = understand(hear(args.audio, args.speech), COCO_IDS)
    return 0, spoken.model_dump(mode="json"), [spoken.heard(), *spoken.understood()]


def train_command(args: argparse.Namespace) -> Result:
    """`--json`: {"output", "step", "loss", "seconds", "interrupted", "figures", "skipped"}."""
    from dataclasses import asdict

    from synthgen.config import load_training

    spec = load_training(args.job, args.overrides)
    from tqdm import tqdm

    from synthgen.train.loop import train

    with tqdm(total=spec.steps, unit="step", smoothing=0.05, dynamic_ncols=True) as bar:

        def report(step: int, loss: float) -> None:
            if not bar.n:
                bar.n = bar.initial = step - 1  # what an earlier run did
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update(step - bar.n)

        result = train(spec, report)
    data = {"output": spec.output.path, **asdict(result)}
    figures = "".join(f", {name} {value:g}" for name, value in result.figures.items())
    if result.skipped:
        figures += f"; {result.skipped} entries of the data skipped, listed in {spec.output.path}/skipped.jsonl"
    if result.interrupted:
        overrides = "".join(f" {o}" for o in args.overrides)
        text = f"stopped after step {result.step} of {spec.steps}. To go on: synthgen train {args.job}{overrides}"
        return EXIT_INTERRUPTED, data, [text]
    return 0, data, [f"{spec.output.path}/checkpoint: {result.step} steps, loss {result.loss:.4f}{figures}"]


def import_command(args: argparse.Namespace) -> Result:
    """`--json`: what `finalize` gives, and {"output", "format", "made", "clipped", "anew", "skipped", "categories", "problems"}.

    "clipped": boxes that stuck out by a pixel at most; "anew": pictures that were encoded anew; "skipped": pictures left out;
    "problems": [{"place", "why"}] of them; "categories": {name: id}; "seconds"; "interrupted".
    """
    from dataclasses import asdict

    from tqdm import tqdm

    from synthgen.importing import import_dataset
    from synthgen.report import write_report

    spec = import_spec(args)
    with tqdm(unit="image", smoothing=0.05, dynamic_ncols=True) as bar:

        def report(what: str, count: int) -> None:
            if bar.desc != what:
                bar.reset(bar.n or None)  # what was checked is what will be written
                bar.set_description_str(what)
            bar.update(count)

        result = import_dataset(spec, args.overwrite, report)
    survey = result.survey
    data = {"output": str(args.out), "format": spec.source.form, **result.counts, "made": result.made}
    data |= {"clipped": survey.clipped, "anew": survey.anew, "skipped": len(survey.bad), "categories": result.ids}
    data |= {
        "problems": [asdict(p) for p in survey.problems],
        "seconds": round(result.seconds, 3),
        "interrupted": result.interrupted,
    }
    if result.interrupted:
        return EXIT_INTERRUPTED, data, [f"stopped; {data['images']} of {survey.count} images are done; the same command goes on"]
    if result.made:
        write_report(args.out, SHOWN)
    notes = [f"{survey.clipped} boxes clipped by a pixel at most"] if survey.clipped else []
    notes += [f"{survey.anew} pictures encoded anew"] if survey.anew else []
    text = "; ".join([f"{args.out}: {data['images']} images, {data['boxes']} boxes, {data['shards']} shards", *notes])
    why = f"{len(survey.bad)} pictures left out, {len(survey.problems)} problems (also in {args.out / 'skipped.jsonl'}):"
    left_out = [why] if survey.problems else []
    return 0, data, [text, *left_out, *map(str, survey.problems)]


def import_spec(args: argparse.Namespace) -> Any:
    """What the arguments of `synthgen import` ask for.

    Raises:
        InputError: names each argument that is wrong.
    """
    from synthgen.importing import ImportSpec
    from synthgen.records.lines import Columns
    from synthgen.records.source import Source, locate
    from synthgen.yamlfile import read_yaml

    problems, categories, ids = [], {}, {}
    for text in args.categories or ():
        pairs = dict([text.rsplit("=", 1)]) if "=" in text else read_yaml(Path(text)).data
        if isinstance(pairs, dict) and all(isinstance(v, str) and v for v in pairs.values()):
            categories.update(pairs)
        else:
            problems.append(f"command line: --categories: {text!r}: give puppy=dog, or a YAML file that maps names to names")
    for text in args.ids or ():
        name, _, number = text.rpartition("=")
        if name and number.isdigit() and int(number) > 0:
            ids[name] = int(number)
        else:
            problems.append(f"command line: --ids: {text!r}: give name=id, such as fox=101")
    if not 1 <= args.shard_size <= 100_000:
        problems.append(f"command line: --shard-size: {args.shard_size} must be from 1 to 100000")
    if args.images is not None and not args.images.is_dir():
        problems.append(f"command line: --images: {args.images}: no such folder")
    if problems:
        raise InputError("\n".join(problems))
    columns = Columns(args.caption_column, args.image_column, args.annotation_column)
    form, path = locate(args.source, args.format)
    if (form == "yolo" and args.images) or (form != "yolo" and args.split):
        raise InputError(f"command line: {'--images' if args.images else '--split'}: not for {form}, which {path} is")
    source = Source(form, path, args.images, args.split, columns, ids)
    return ImportSpec(source, args.out, categories, ids, args.shard_size, args.skip_bad, args.licence)


def benchmark_command(args: argparse.Namespace) -> Result:
    """`--json`: what `synthgen.benchmark.run.benchmark` returns."""
    from synthgen.benchmark import Benchmark

    overrides = (*args.overrides, *([f"steps={args.steps}"] if args.steps is not None else []))
    spec = Benchmark(
        args.real, args.synthetic, args.output, args.test, args.hold_out, tuple(args.ratios), args.seeds, args.detector, overrides
    )
    spec.check()
    runs = list(spec.runs())
    total = len(runs) * spec.training(runs[0]).steps
    from tqdm import tqdm

    from synthgen.benchmark.run import benchmark
    from synthgen.benchmark.summary import table

    with tqdm(total=total, unit="step", smoothing=0.05, dynamic_ncols=True) as bar:

        def step(name: str, done: int, loss: float) -> None:
            bar.set_description(name, refresh=False)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update(done - bar.n)

        data = benchmark(spec, step, bar.write)
    if data.get("interrupted"):
        return (
            EXIT_INTERRUPTED,
            data,
            [f"stopped; {len(data['runs'])} of {len(runs)} trainings are done. The same command goes on"],
        )
    images = ", ".join(f"{count} {name}" for name, count in data["images"].items())
    tail = f"{spec.out}/results.json, benchmark.png: {data['steps']} steps each, {spec.seeds} seeds; pictures: {images}"
    return 0, data, [*table(data["rows"]), "", tail]


def check_command(args: argparse.Namespace) -> Result:
    """`--json`: {"ok", "faults", "images", "boxes", "shards"}."""
    from synthgen.shards.check import check_dataset

    faults, counts = check_dataset(args.out)
    data = {"ok": not faults, "faults": faults, **counts}
    summary = f"{counts['images']} images, {counts['boxes']} boxes, {counts['shards']} shards"
    if faults:
        return EXIT_FAULT, data, [*faults, f"{args.out}: {len(faults)} faults in {summary}"]
    return 0, data, [f"ok: {summary}"]


def finalize_command(args: argparse.Namespace) -> Result:
    """`--json`: {"output", "images", "boxes", "shards", "bytes", "verified", "complete"}."""
    from synthgen.config import ConfigError
    from synthgen.shards.dataset import finalize, read_info
    from synthgen.shards.lock import Lock

    info = read_info(args.out)
    if info is None:
        raise ConfigError([f"{args.out}: no dataset here (dataset.json is missing or damaged)"])
    with Lock(args.out):
        counts = finalize(args.out, info)
    done = "complete" if counts["complete"] else f"{info.asked - counts['images']} images are still missing"
    return 0, {"output": str(args.out), **counts}, [f"{args.out}: {counts['images']} images, {counts['boxes']} boxes; {done}"]


def list_command(args: argparse.Namespace) -> Result:
    """`--json`: {"samplers": {name: text}, "methods": {name: text}, "layouts": [], "pipelines": [], "jobs": []}."""
    from synthgen import registry
    from synthgen.config import RECIPES, recipe_names

    data: dict[str, Any] = {}
    for kind in registry.PACKAGES:
        data[f"{kind}s"] = {name: _first_line(registry.spec_class(kind, name)) for name in registry.names(kind)}
    for kind, folder in RECIPES.items():
        data[folder] = recipe_names(kind)
    lines = []
    for heading, entries in data.items():
        lines.append(f"{heading}:")
        lines += [f"  {n:<20}{entries[n]}" for n in entries] if isinstance(entries, dict) else [f"  {n}" for n in entries]
    return 0, data, lines


def _first_line(thing: Any) -> str:
    return str(thing.__doc__).splitlines()[0]
