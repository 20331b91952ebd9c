"""Invalid jobs are refused with exact messages."""

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

SAMPLERS = ", ".join(registry.list_names("sampler"))
METHODS = ", ".join(registry.list_names("method"))
CUTOUTS = "['ball', 'cat', 'dog', 'tree']"

# For each case: the text of GOOD that is replaced, the new text, and the problems after the file.
BAD: dict[str, tuple[str, str, list[str]]] = {
    "unknown key": (
        "images: 4",
        "imges: 4",
        [
            "1: images: missing; this key must be given",
            "3: imges: unknown key; did you mean 'images'?",
        ],
    ),
    "wrong type": (
        "images: 4",
        "images: many",
        [
            "3: images: 'many': input should be a valid integer, unable to parse string as an "
            "integer"
        ],
    ),
    "too small": (
        "images: 4",
        "images: 0",
        ["3: images: 0: input should be greater than or equal to 1"],
    ),
    "duplicate key": (
        "images: 4",
        "images: 4\nimages: 5",
        ["4: images: duplicate key; keep one"],
    ),
    "version": ("version: 1", "version: 2", ["1: version: 2: input should be 1"]),
    "nested": (
        "  size: [20, 30]",
        "  sizes: [20, 30]",
        ["8: layout.sizes: unknown key; did you mean 'size'?"],
    ),
    "order": (
        "size: [20, 30]",
        "size: [30, 20]",
        ["8: layout.size: [30, 20] must be two positive numbers, the smaller first"],
    ),
    "large": (
        "size: [20, 30]",
        "size: [20, 300]",
        ["8: layout.size: 300 px is larger than the canvas (128 x 128)"],
    ),
    "sampler": (
        "sampler: scatter",
        "sampler: scater",
        [
            "5: layout.sampler: 'scater' is not a sampler; did you mean 'scatter'?; there are: "
            f"{SAMPLERS}"
        ],
    ),
    "no sampler": (
        "  sampler: scatter\n",
        "",
        [f"4: layout.sampler: missing; it names the sampler; there are: {SAMPLERS}"],
    ),
    "method": (
        "method: paste",
        "method: past",
        [
            "10: pipeline.method: 'past' is not a method; did you mean 'paste'?; there are: "
            f"{METHODS}"
        ],
    ),
    "no id": (
        "{dog: 3}",
        "{wombat: 3}",
        [
            "7: layout.objects: 'wombat' is not a COCO category; give it an id: "
            "`categories: {wombat: 101}`",
            f"9: pipeline.cutouts: no cut-outs of 'wombat' in 'train'; it has {CUTOUTS}",
        ],
    ),
    "plural": (
        "{dog: 3}",
        "{dogs: 3}",
        [
            "7: layout.objects: 'dogs' is not a COCO category; did you mean 'dog'? If not, give it "
            "an id: `categories: {dogs: 101}`",
            f"9: pipeline.cutouts: no cut-outs of 'dogs' in 'train'; it has {CUTOUTS}",
        ],
    ),
    "no room": (
        "{dog: 3}",
        "{dog: 99}",
        [
            "7: layout.objects: 99 boxes of 20-30 px with gap 8 do not fit 128 x 128; the largest "
            "number that does is 15"
        ],
    ),
    "store": (
        "path: out",
        "path: ftp://host/out",
        [
            "12: output.path: 'ftp://host/out': give a folder, or a URL that begins with s3://, "
            "gs://, gcs://, hdfs://"
        ],
    ),
    "keys": (
        "path: out",
        "path: 's3://AKIA:hidden@bucket/out'",
        [
            "12: output.path: 's3://bucket/out': no user or key in a URL; credentials come from "
            "the environment or the machine's profile"
        ],
    ),
    "key": (
        "path: out",
        "path: 's3://bucket/out?secret_key=hidden'",
        [
            "12: output.path: 's3://bucket/out': 'secret_key' cannot be given in a URL; only "
            "region, scheme, endpoint_override, user, replication can, and never a key"
        ],
    ),
    "workers": (
        "version: 1",
        "version: 1\nworkers: [4, 2]",
        ["2: workers: [4, 2] must be [least, most] with 1 <= least <= most"],
    ),
    "scene": (
        "version: 1",
        "version: 1\nscene: {object: 'a {dog}'}",
        ["2: scene.object: 'a {dog}': only {category} is replaced"],
    ),
    "negative": (
        "size: [20, 30]",
        "size: [-5, 30]",
        ["8: layout.size: [-5, 30] must be two positive numbers, the smaller first"],
    ),
    "not yaml": (
        "images: 4",
        "images: [4",
        ["4: not YAML: expected ',' or ']', but got ':'"],
    ),
    "no mapping": (GOOD, "- 1\n", ["1: a job is a mapping of keys to values"]),
    "empty": (GOOD, "", ["1: a job is a mapping of keys to values"]),
}


@pytest.mark.parametrize(("old", "new", "expected"), BAD.values(), ids=BAD.keys())
def test_an_invalid_file_is_refused_with_exact_messages(
    tmp_path: Path, old: str, new: str, expected: list[str]
) -> None:
    path = tmp_path / "job.yaml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_job(str(path))
    problems = [problem.removeprefix(f"{path}:") for problem in caught.value.problems]
    assert problems == expected


def test_all_problems_are_reported_in_one_error(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        GOOD.replace("images: 4", "images: x")
        .replace("size:", "sise:")
        .replace("method: paste", "method: paste\n  shadow: 9")
    )
    with pytest.raises(ConfigError) as caught:
        load_job(str(path), ["seed=-1"])
    keys = [problem.split(": ")[1] for problem in caught.value.problems]
    assert keys == ["layout.sise", "pipeline.shadow", "images", "seed"]


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


@pytest.mark.parametrize(("override", "message"), NUMBERS)
def test_true_and_false_are_not_numbers(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_job("100dogs", [override])
    lines = [line for line in str(caught.value).splitlines() if message in line]
    assert any(line.startswith("command line: ") for line in lines)
    assert "function-before" not in str(caught.value)


def test_true_is_not_a_number_of_a_training_job() -> None:
    with pytest.raises(ConfigError, match="command line: seed: true: input should be a number"):
        load_training("train-detector", ["seed=true"])


@pytest.mark.parametrize("written", ["10", "10.0", "1e1", "'10'"])
def test_whole_numbers_may_be_written_as_decimals(written: str) -> None:
    job = load_job("100dogs", [f"images={written}"])
    assert (job.images, type(job.images)) == (10, int)


def test_every_mapping_of_a_job_is_a_spec_model() -> None:
    """The models of recipes are SpecModels, so that true and 1 are not confused in them."""
    for kind in registry.PACKAGES:
        for name in registry.list_names(kind):
            registry.load_spec_class(kind, name)
    remaining: list[type[BaseModel]] = [BaseModel]
    while remaining:
        for model in remaining.pop().__subclasses__():
            remaining.append(model)
            assert issubclass(model, SpecModel) or not model.__module__.startswith("synthgen.")
