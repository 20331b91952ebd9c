"""Every command of the README and of docs/: read by the real parser as it is written, then run at toy size."""

import argparse
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from synthgen import cli
from tests.docs.commands import PAGES, ROOT, blocks, commands, load
from tests.docs.place import furnish, make_dataset, write_files
from tests.speech.whisper import converted_whisper

# What does not run here: how it begins, and why, or which test runs it. What is of Ray is parsed by Ray.
ELSEWHERE = {
    "python3 -m venv": "installs: tests/test_package.py::test_the_first_line_of_the_readme; the line of the tests is .ci/run, which these tests are part of",
    "source .venv/bin/activate": "of the shell",
    "ruff check": "the README's second line has it: .ci/run",
    "pytest": "these tests themselves",
    "mkdocs build": "tests/docs/test_site.py::test_it_is_built_without_warnings",
    "ray ": "starts machines: tests/test_submit.py::test_ray_submit_starts_the_cluster_and_runs_the_job_on_its_worker has two on loopback",
    "aws ": "an account of AWS",
    "docker ": "builds an image",
    "kubectl ": "a cluster of Kubernetes",
    "eval $(register-python-argcomplete": "of the shell: tests/cli/test_describe.py::test_the_shell_is_told_what_could_come_next",
    "register-python-argcomplete": "the same",
}
# `synthgen` commands that do not run here, by what is in them. They are parsed, with their job.
PARSED = {
    "--address": "a running Ray cluster: tests/engine/test_faults.py has Ray on one machine",
    "://": "an object store: tests/engine/test_object_store.py",
}
PYTHON_ELSEWHERE = {
    "docs/loading"
}  # complete trainings, run by the tests of synthgen.dataset.reader
TOY = '"100dogs", ["layout.canvas=[64, 64]", "layout.objects={dog: 1}", "layout.size=[32, 40]"]'
READS = ("check", "evaluate", "export", "finalize", "merge", "repair", "report")
SLOW = {"docs/data", "docs/training"}
IN_TEXT = re.compile(r"`synthgen ([a-z]+)([^`]*)`")
WITH_COMMANDS = [page for page in PAGES if any(commands(page))]


def name(page: Path) -> str:
    """What the tests of a page are called by: its path without the suffix."""
    return page.relative_to(ROOT).with_suffix("").as_posix()


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("furnished"))


@pytest.fixture
def place(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for one page alone."""
    monkeypatch.chdir(shutil.copytree(furnished, tmp_path / "place", symlinks=True))
    return tmp_path / "place"


def each_command(page: Path) -> Iterator[tuple[list[str], bool]]:
    """The arguments of each `synthgen` command, and whether it can run here; others must be known."""
    for words in commands(page):
        line = " ".join(words)
        if words[0].removeprefix(".venv/bin/") == "synthgen":
            yield words[1:], not any(part in line for part in PARSED)
        else:
            assert line.startswith(tuple(ELSEWHERE)), (
                f"{page}: {line!r}: run it, or list it with the reason"
            )


def smaller_arguments(argv: list[str]) -> list[str]:
    """What makes a command one of seconds; its job is read as it is written."""
    small = load(argv, getattr(cli.parse(argv), "overrides", []))
    return (
        [*small, "--speech", str(converted_whisper())]
        if argv[0] == "transcribe" or "--voice" in argv
        else small
    )


def make_datasets(argv: list[str]) -> None:
    """Those that a page's command reads, and none of its commands has made."""
    read = argv[1 : argv.index("--to") if argv[0] == "merge" else 2] if argv[0] in READS else []
    for out in read:
        if out.startswith("out/") and not Path(out).exists():
            make_dataset(Path(out))


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, marks=pytest.mark.slow if name(p) in SLOW else (), id=name(p))
        for p in WITH_COMMANDS
    ],
)
def test_commands_run(page: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(page, place)
    for argv, runs in each_command(page):
        small = smaller_arguments(argv)
        if runs:
            make_datasets(argv)
            status = cli.main([*argv, *small])
            assert status == 0, f"{' '.join(argv)}\n{capsys.readouterr()}"


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "python") and name(p) not in PYTHON_ELSEWHERE], ids=name
)
def test_python_runs(page: Path, place: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block.replace('"100dogs"', TOY), str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_shell_blocks_are_marked(page: Path) -> None:
    for language in ("bash", "shell", "console", "text"):
        assert [
            b for b in blocks(page, language) if re.match(r"\$? ?(synthgen|pip|python3?|ray) ", b)
        ] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_running_text_exist(page: Path) -> None:
    """`synthgen evaluate OUT --clip`: the command and its options."""
    known = next(
        a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)
    ).choices
    for command, rest in IN_TEXT.findall(page.read_text()):
        assert command in known
        assert [
            o
            for o in re.findall(r"--[a-z-]+", rest)
            if o not in known[command]._option_string_actions
        ] == []


@pytest.mark.parametrize("why", [*ELSEWHERE.values(), *PARSED.values()])
def test_the_tests_that_run_what_does_not_run_here_exist(why: str) -> None:
    for path, function in re.findall(r"((?:tests|\.ci)/[\w/.]*\w)(?:::(\w+))?", why):
        assert (ROOT / path).exists()
        assert not function or f"def {function}(" in (ROOT / path).read_text()


def test_commands_of_ray_are_what_ray_reads() -> None:
    from ray.scripts.scripts import cli as ray

    for page in PAGES:
        for words in commands(page):
            if words[0] == "ray":
                command, rest = ray.commands[words[1]], words[2:]
                if hasattr(command, "commands"):
                    command, rest = command.commands[rest[0]], rest[1:]
                command.make_context(words[1], rest)  # raises click's UsageError
