"""Every command of the README and of docs/: read by the real parser as it is written, then run at toy size."""

import argparse
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from synthgen import cli
from tests.docs.commands import PAGES, ROOT, blocks, commands, load
from tests.docs.place import furnish, write_files
from tests.voice.whisper import converted_whisper

# What cannot run here, how it begins, and what is done instead. A `synthgen` command among them is still parsed, with its job.
ELSEWHERE = {
    "python3 -m venv": "installing: tests/test_package.py runs the README's first line; .ci/run its second, which these tests are part of",
    "source .venv/bin/activate": "of the shell",
    "ruff check": "the README's second line has it",
    "pytest": "these tests themselves",
    "mkdocs build": "tests/docs/test_site.py",
    "ray start": "machines of a cluster: tests/engine/test_faults.py runs on several nodes",
    "ray up": "AWS: tests/test_cluster.py holds the file against Ray's schema",
    "ray down": "AWS",
}
PARSED = {"--address": "a running Ray cluster: tests/engine"}
SLOW = {"data", "dreambooth", "labels", "training", "benchmark", "your-class"}
IN_TEXT = re.compile(r"`synthgen ([a-z]+)([^`]*)`")
NAMES = [page.relative_to(ROOT).with_suffix("").as_posix() for page in PAGES]
WITH_COMMANDS = [page for page in PAGES if any(commands(page))]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    return furnish(tmp_path_factory.mktemp("furnished"), checkpoint)


@pytest.fixture
def place(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for one page alone."""
    monkeypatch.chdir(shutil.copytree(furnished, tmp_path / "place"))
    return tmp_path / "place"


def each_command(page: Path) -> Iterator[tuple[list[str], bool]]:
    """The arguments of each `synthgen` command, and whether it can run here; others must be known."""
    for words in commands(page):
        line = " ".join(words)
        if words[0] == "synthgen":
            yield words[1:], not any(part in line for part in PARSED)
        else:
            assert line.startswith(tuple(ELSEWHERE)), f"{page}: {line!r}: run it, or list it with the reason"


def smaller_arguments(argv: list[str], checkpoint: Path) -> list[str]:
    """What makes a command one of seconds; its job is read as it is written."""
    if argv[0] == "benchmark":
        return ["--steps", "1", "--seeds", "1"]
    small = load(argv, getattr(cli.parse(argv), "overrides", []), checkpoint)
    return [*small, "--speech", str(converted_whisper())] if argv[0] == "transcribe" or "--voice" in argv else small


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow if p.stem in SLOW else (), id=p.stem) for p in WITH_COMMANDS]
)
def test_commands_run(page: Path, place: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(page, place)
    for argv, runs in each_command(page):
        small = smaller_arguments(argv, checkpoint)
        if runs:
            status = cli.main([*argv, *small])
            assert status == 0, f"{' '.join(argv)}\n{capsys.readouterr()}"


def test_nothing_is_listed_that_is_nowhere() -> None:
    lines = [" ".join(words) for page in PAGES for words in commands(page)]
    assert {start for start in ELSEWHERE if not any(line.startswith(start) for line in lines)} == set()
    assert {part for part in PARSED if not any(part in line for line in lines)} == set()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_shell_blocks_are_marked(page: Path) -> None:
    for language in ("", "bash", "shell", "console", "text"):
        assert [b for b in blocks(page, language) if re.match(r"\$? ?(synthgen|pip|python3?|ray) ", b)] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_in_running_text_exist(page: Path) -> None:
    """`synthgen evaluate OUT --clip`: the command and its options."""
    known = next(a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    for name, rest in IN_TEXT.findall(page.read_text()):
        assert name in known
        assert [o for o in re.findall(r"--[a-z-]+", rest) if o not in known[name]._option_string_actions] == []


def test_commands_of_ray_are_what_ray_reads() -> None:
    from ray.scripts.scripts import cli as ray

    for page in PAGES:
        for words in commands(page):
            if words[0] == "ray":
                ray.commands[words[1]].make_context(words[1], words[2:])  # raises click's UsageError
