"""Every job file is read as a job or refused with one line for each problem."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.config import ConfigError, list_recipe_names, load_job, load_training
from synthgen.errors import InputError
from synthgen.yamlfile import parse_yaml, read_yaml
from tests.conftest import SMALL_JOB
from tests.fuzz import tries

SHIPPED = [Path(f"jobs/{name}.yaml") for name in list_recipe_names("job")]
ODD = [
    "",
    "~",
    "null",
    ".nan",
    "-.inf",
    "1e999",
    "-1",
    "0",
    "9" * 5000,
    "true",
    "[]",
    "{}",
    "[[]]",
    "{a: b}",
    "*a",
    "&a [*a]",
    "!!binary x",
    "!!python/object/apply:os.system [echo]",
    "!!bool maybe",
    "2001-01-01",
    "'{category!r}'",
    "'{category.__class__}'",
    "'{0}'",
    "'{'",
    "../../etc/passwd",
    "/dev/null",
    '"\\ud800"',
    '"\\0"',
    "s3://a:b@c",
    "- a",
    "|\n  x",
    "[1, 2, 3, 4, 5]",
    "[.nan, .nan]",
    "[1e308, 1e308]",
]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["dog", "paste", "scatter"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def check_outcome(read: Callable[[], object]) -> None:
    """Run a reader, which may refuse with problems."""
    problems = ["none"]
    try:
        read()
    except InputError as error:
        problems = error.problems
    assert problems
    assert all(problem.strip() for problem in problems)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


def read_both(folder: Path, data: bytes, overrides: tuple[str, ...] = ()) -> None:
    """Read bytes as a job and as a training job."""
    path = folder / "job.yaml"
    path.write_bytes(data)
    check_outcome(lambda: load_job(str(path), overrides))
    check_outcome(lambda: load_training(str(path), overrides))


@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass"))
)
@tries(30)
def test_any_bytes_are_read_or_refused(folder: Path, data: bytes) -> None:
    read_both(folder, data)


@given(st.sampled_from(SHIPPED), st.data())
@tries(25)
def test_shipped_jobs_with_a_changed_line_are_read_or_refused(
    folder: Path, job: Path, data: st.DataObject
) -> None:
    lines = job.read_text().splitlines()
    i = data.draw(st.integers(0, len(lines) - 1))
    key, colon, _ = lines[i].partition(":")
    value = data.draw(st.sampled_from(ODD) | st.text(max_size=20))
    lines[i] = data.draw(
        st.sampled_from([f"{key}{colon} {value}", value, f" {lines[i]}", "", lines[i] * 2])
    )
    read_both(folder, "\n".join(lines).encode("utf-8", "surrogatepass"))


@given(st.data())
@tries(25)
def test_a_job_with_any_value_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    job: Any = json.loads(json.dumps({**SMALL_JOB, "output": {"path": "out"}}))
    node: Any = job
    while True:
        key = data.draw(st.sampled_from(sorted(node)))
        if not (isinstance(node[key], dict) and node[key] and data.draw(st.booleans())):
            break
        node = node[key]
    node[data.draw(st.just(key) | st.text(max_size=5))] = data.draw(values)
    read_both(folder, json.dumps(job).encode("utf-8", "surrogatepass"))


KEYS = [
    "images",
    "layout",
    "layout.size",
    "layout.objects.dog",
    "scene.object",
    "pipeline",
    "pipeline.cutouts",
    "output.path",
    "workers",
    "x..y",
    "verify",
]


keys = st.sampled_from(KEYS) | st.text(max_size=8)
overrides_of_jobs = st.tuples(keys, st.sampled_from(ODD)).map("=".join)


@given(st.lists(overrides_of_jobs, max_size=3))
@tries(25)
def test_any_overrides_are_read_or_refused(folder: Path, overrides: list[str]) -> None:
    read_both(
        folder, json.dumps({**SMALL_JOB, "output": {"path": "out"}}).encode(), tuple(overrides)
    )


@given(
    st.text(max_size=12)
    | st.sampled_from(
        [
            "../jobs/100dogs",
            "/etc/passwd",
            "a\0.yaml",
            ".yaml",
            "x" * 5000 + ".yaml",
            "x" * 5000,
            "con:",
            "jobs",
        ]
    )
)
@tries(25)
def test_any_name_of_a_job_is_read_or_refused(name: str) -> None:
    check_outcome(lambda: load_job(name))


TAG = "tag:yaml.org,2002:"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: !!python/object/apply:os.system ['touch gone']",
            f"1: not YAML: the tag {TAG}python/object/apply:os.system is not data",
        ),
        (
            "!!python/object:os.stat_result {}",
            f"1: not YAML: the tag {TAG}python/object:os.stat_result is not data",
        ),
        (
            "a: 1\nb: !!python/name:os.system",
            "2: not YAML: could not determine a constructor for the tag "
            f"'{TAG}python/name:os.system'",
        ),
        ("a: 1\nb: !!binary aGk=", "2: not YAML: 'aGk=' is a bytes; for a text put it in quotes"),
        ("a: !!set {x}", f"1: not YAML: the tag {TAG}set is not data"),
        ("a: &a [*a]", "1: not YAML: maximum recursion depth exceeded"),
        ("[" * 1000, "1: not YAML: maximum recursion depth exceeded"),
        ('a: "\\ud800"', "1: not YAML: an unpaired surrogate is not a character"),
        ("? [a]\n: 1", "1: not YAML: a key is a text or a number"),
    ],
)
def test_yaml_is_data_only(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f")
    assert caught.value.problems[0].startswith(f"f:{message}")
    assert len(caught.value.problems) == 1


def test_a_folder_is_not_read_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
