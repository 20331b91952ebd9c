"""Jobs that are wrong: the exact message for what is wrong."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from synthgen import registry
from synthgen.config import ConfigError, load_job, load_training
from synthgen.spec import SpecModel

GOOD = """\
version: 1
name: bad
images: 4
layout:
  sampler: scatter
  canvas: [128, 128]
  objects: {dog: 3}
  size: [20, 30]
pipeline:
  method: paste
output:
  path: out
"""

BAD = [
    ("unknown key", "images: 4", "imges: 4", ["1: images: missing; this key must be given", "3: imges: unknown key; did you mean 'images'?"]),
    ("wrong type", "images: 4", "images: many", ["3: images: 'many': input should be a valid integer, unable to parse string as an integer"]),
    ("too small", "images: 4", "images: 0", ["3: images: 0: input should be greater than or equal to 1"]),
    ("twice", "images: 4", "images: 4\nimages: 5", ["4: images: this key stands twice; keep one"]),
    ("version", "version: 1", "version: 2", ["1: version: 2: input should be 1"]),
    ("nested", "  size: [20, 30]", "  sizes: [20, 30]", ["8: layout.sizes: unknown key; did you mean 'size'?"]),
    ("order", "size: [20, 30]", "size: [30, 20]", ["8: layout.size: [30, 20] must be two positive numbers, least first"]),
    ("large", "size: [20, 30]", "size: [20, 300]", ["8: layout.size: 300 px is larger than the canvas (128 x 128)"]),
    ("sampler", "sampler: scatter", "sampler: scater", ["5: layout.sampler: 'scater' is not a sampler; did you mean 'scatter'?; there are: coco, crowd, file, fit, grid, pack, perspective, scatter"]),
    ("no sampler", "  sampler: scatter\n", "", ["4: layout.sampler: missing; it names the sampler; there are: coco, crowd, file, fit, grid, pack, perspective, scatter"]),
    ("method", "method: paste", "method: past", ["10: pipeline.method: 'past' is not a method; did you mean 'paste'?; there are: " + ", ".join(registry.names("method"))]),
    ("no id", "{dog: 3}", "{wombat: 3}", [
        "7: layout.objects: 'wombat' is not a COCO category; give it an id: `categories: {wombat: 101}`",
        "9: pipeline.cutouts: no cut-outs of 'wombat' in 'train'; it has ['ball', 'cat', 'dog', 'tree']",
    ]),
    ("plural", "{dog: 3}", "{dogs: 3}", [
        "7: layout.objects: 'dogs' is not a COCO category; did you mean 'dog'? If not, give it an id: `categories: {dogs: 101}`",
        "9: pipeline.cutouts: no cut-outs of 'dogs' in 'train'; it has ['ball', 'cat', 'dog', 'tree']",
    ]),
    ("no room", "{dog: 3}", "{dog: 99}", ["7: layout.objects: 99 boxes of 20-30 px with gap 8 do not fit 128 x 128; the largest number that does is 15"]),
    ("store", "path: out", "path: ftp://host/out", ["12: output.path: 'ftp://host/out': give a folder, or a URL that begins with s3://, gs://, gcs://, hdfs://"]),
    ("keys", "path: out", "path: 's3://AKIA:hidden@bucket/out'", ["12: output.path: 's3://bucket/out': no user or key in a URL; credentials come from the environment or the machine's profile"]),
    ("key", "path: out", "path: 's3://bucket/out?secret_key=hidden'", ["12: output.path: 's3://bucket/out': 'secret_key' cannot be given in a URL; only region, scheme, endpoint_override, user, replication can, and never a key"]),
    ("workers", "version: 1", "version: 1\nworkers: [4, 2]", ["2: workers: [4, 2] must be [least, most] with 1 <= least <= most"]),
    ("scene", "version: 1", "version: 1\nscene: {object: 'a {dog}'}", ["2: scene.object: 'a {dog}': only {category} is replaced"]),
    ("negative", "size: [20, 30]", "size: [-5, 30]", ["8: layout.size: [-5, 30] must be two positive numbers, least first"]),
    ("not yaml", "images: 4", "images: [4", ["4: not YAML: expected ',' or ']', but got ':'"]),
    ("no mapping", GOOD, "- 1\n", ["1: a job is a mapping of keys to values"]),
    ("empty", GOOD, "", ["1: a job is a mapping of keys to values"]),
]  # fmt: skip  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_files(tmp_path: Path, old: str, new: str, expected: list[str]) -> None:
    path = tmp_path / "job.yaml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_job(str(path))
    assert [p.removeprefix(f"{path}:") for p in caught.value.problems] == expected


def test_all_errors_at_once(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        GOOD.replace("images: 4", "images: x")
        .replace("size:", "sise:")
        .replace("method: paste", "method: paste\n  shadow: 9")
    )
    with pytest.raises(ConfigError) as caught:
        load_job(str(path), ["seed=-1"])
    assert [p.split(": ")[1] for p in caught.value.problems] == [
        "layout.sise",
        "pipeline.shadow",
        "images",
        "seed",
    ]


NUMBERS = [
    ("images=true", "images: true: input should be a number, not true or false"),
    ("seed=false", "seed: false: input should be a number, not true or false"),
    ("layout.canvas=[true, 256]", "layout.canvas.0: true: input should be a number"),
    ("layout.size=[true, 88]", "layout.size.range.0: true: input should be a number"),
    ("layout.objects={dog: true}", "layout.objects.dog: True: input should be a valid dictionary"),
    (
        "layout.objects={dog: {share: true}}",
        "layout.objects.dog.share: true: input should be a number",
    ),
    ("output.shard_size=true", "output.shard_size: true: input should be a number"),
    ("workers=true", "workers: true: input should be a number"),
    ("workers=[true, 4]", "workers.0: true: input should be a number"),
    ("version=true", "version: true: input should be a number"),
    ("categories={dog: true}", "categories.dog: true: input should be a number"),
    ("pipeline.steps=true", "pipeline.steps: true: input should be a number"),
    ("pipeline.guidance_scale=.nan", "pipeline.guidance_scale: nan: input should be a number"),
    (
        "verify={verifier: detector, threshold: {dog: true}}",
        "verify.threshold.dog: true: input should be a number",
    ),
    (
        "verify={verifier: panel, of: [{verifier: detector, iou: true}]}",
        "iou: Value error, true: input should be a number",
    ),
    (
        "scene.camera={jpeg: {quality: true}}",
        "scene.camera.jpeg.quality.0: true: input should be a number",
    ),
    (
        "images=10.5",
        "images: 10.5: input should be a valid integer, got a number with a fractional part",
    ),
]


@pytest.mark.parametrize(("override", "said"), NUMBERS)
def test_true_and_false_are_not_numbers(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_job("100dogs", [override])
    assert any(
        line.startswith("command line: ") and said in line
        for line in str(caught.value).splitlines()
    )
    assert "function-before" not in str(caught.value)


def test_true_is_not_a_number_of_a_training_job() -> None:
    with pytest.raises(ConfigError, match="command line: seed: true: input should be a number"):
        load_training("train-detector", ["seed=true"])


@pytest.mark.parametrize("written", ["10", "10.0", "1e1", "'10'"])
def test_whole_numbers_may_be_written_as_decimals(written: str) -> None:
    job = load_job("100dogs", [f"images={written}"])
    assert (job.images, type(job.images)) == (10, int)


def test_every_mapping_of_a_job_tells_true_from_1() -> None:
    """A class that a recipe holds must be a SpecModel too, or its numbers are not looked at."""
    for kind in ("sampler", "method", "task", "verifier"):
        for name in registry.names(kind):
            registry.spec_class(kind, name)
    todo, own = [BaseModel], []
    while todo:
        todo += (found := todo.pop().__subclasses__())
        own += [
            c
            for c in found
            if c.__module__.startswith("synthgen.") and not issubclass(c, SpecModel)
        ]
    assert own == []
