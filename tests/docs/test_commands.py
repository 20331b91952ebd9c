"""Every command of the README and of docs/ is parsed as it is written, and runs at toy size."""

import argparse
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synthgen import cli
from tests.docs.commands import PAGES, ROOT, find_blocks, find_commands, shrink_command
from tests.docs.place import furnish, make_dataset, write_files
from tests.speech.whisper import converted_whisper

# How a command that does not run here begins, and why, or which test runs it.
# Ray parses its own commands in a test below.
ELSEWHERE = {
    "python3 -m venv": "installs: tests/test_package.py::test_the_first_line_of_the_readme; "
    "the line of the tests is .ci/run, and these tests are part of it",
    "source .venv/bin/activate": "a command of the shell",
    "ruff check": "the README's second line has it: .ci/run",
    "pytest": "runs these tests themselves",
    "mkdocs build": "tests/docs/test_site.py::test_the_site_is_built_without_warnings",
    "ray ": "starts machines: tests/test_submit.py::"
    "test_ray_submit_starts_the_cluster_and_runs_the_job_on_its_worker has two on loopback",
    "aws ": "needs an account of AWS",
    "docker ": "builds an image",
    "kubectl ": "needs a cluster of Kubernetes",
    "eval $(register-python-argcomplete": "a command of the shell: tests/cli/test_describe.py::"
    "test_the_shell_is_told_what_could_come_next",
    "register-python-argcomplete": "the same",
}
# `synthgen` commands with these parts do not run here. They are parsed, with their job.
PARSED = {
    "--address": "needs a running Ray cluster: tests/engine/test_faults.py has Ray on one machine",
    "://": "needs an object store: tests/engine/test_object_store.py",
}
# Pages whose Python blocks are complete trainings: tests/docs/test_loading.py runs them.
PYTHON_ELSEWHERE = {"docs/how-to/loading"}
TOY = '"100dogs", ["layout.canvas=[64, 64]", "layout.objects={dog: 1}", "layout.size=[32, 40]"]'
READING_COMMANDS = ("check", "evaluate", "export", "finalize", "merge", "repair", "report")
SLOW = {"docs/how-to/data", "docs/how-to/training"}
IN_TEXT = re.compile(r"`synthgen ([a-z]+)([^`]*)`")
NAMED_TEST = re.compile(r"((?:tests|\.ci)/[\w/.]*\w)(?:::(\w+))?")


def name_page(page: Path) -> str:
    """Return the path of a page without its suffix, as the id of its tests."""
    return page.relative_to(ROOT).with_suffix("").as_posix()


def list_pages_with_commands() -> Iterator[Any]:
    """Yield each page with commands as a parameter; some are marked slow."""
    for page in PAGES:
        if any(find_commands(page)):
            name = name_page(page)
            marks = [pytest.mark.slow] if name in SLOW else []
            yield pytest.param(page, marks=marks, id=name)


def list_pages_with_python() -> Iterator[Path]:
    """Yield each page whose Python blocks run here."""
    for page in PAGES:
        if find_blocks(page, "python") and name_page(page) not in PYTHON_ELSEWHERE:
            yield page


def find_subcommands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each `synthgen` command by name."""
    for action in cli.parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("the command line has no commands")


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("furnished"))


@pytest.fixture
def place(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the furnished folder for one page and make it the working directory."""
    place = tmp_path / "place"
    shutil.copytree(furnished, place, symlinks=True)
    monkeypatch.chdir(place)
    return place


def find_synthgen_commands(page: Path) -> Iterator[tuple[list[str], bool]]:
    """Yield the arguments of each `synthgen` command, and whether it can run here.

    Every other command must be listed in `ELSEWHERE`.
    """
    for words in find_commands(page):
        line = " ".join(words)
        if words[0].removeprefix(".venv/bin/") == "synthgen":
            yield words[1:], not any(part in line for part in PARSED)
        else:
            message = f"{page}: {line!r}: run it, or list it with the reason"
            assert line.startswith(tuple(ELSEWHERE)), message


def shrink_arguments(argv: list[str]) -> list[str]:
    """Return the arguments that make a command run in seconds; its job is read as written."""
    small = shrink_command(argv, getattr(cli.parse(argv), "overrides", []))
    if argv[0] == "transcribe" or "--voice" in argv:
        return [*small, "--speech", str(converted_whisper())]
    return small


def make_datasets(argv: list[str]) -> None:
    """Generate the datasets that a command reads and that no command of its page has written."""
    if argv[0] not in READING_COMMANDS:
        return
    end = argv.index("--to") if argv[0] == "merge" else 2
    for out in argv[1:end]:
        if out.startswith("out/") and not Path(out).exists():
            make_dataset(Path(out))


@pytest.mark.parametrize("page", list_pages_with_commands())
def test_commands_run(page: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(page, place)
    for argv, runs in find_synthgen_commands(page):
        small = shrink_arguments(argv)
        if runs:
            make_datasets(argv)
            status = cli.main([*argv, *small])
            assert status == 0, f"{' '.join(argv)}\n{capsys.readouterr()}"


@pytest.mark.parametrize("page", list_pages_with_python(), ids=name_page)
def test_python_runs(page: Path, place: Path) -> None:
    names: dict[str, object] = {}
    for block in find_blocks(page, "python"):
        exec(compile(block.replace('"100dogs"', TOY), str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_shell_blocks_are_marked(page: Path) -> None:
    for language in ("bash", "shell", "console", "text"):
        for block in find_blocks(page, language):
            assert not re.match(r"\$? ?(synthgen|pip|python3?|ray) ", block), block


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_commands_in_running_text_exist(page: Path) -> None:
    """`synthgen evaluate OUT --clip`: the command and its options."""
    subcommands = find_subcommands()
    for command, rest in IN_TEXT.findall(page.read_text()):
        assert command in subcommands
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in subcommands[command]._option_string_actions


@pytest.mark.parametrize("why", [*ELSEWHERE.values(), *PARSED.values()])
def test_the_tests_that_run_the_other_commands_exist(why: str) -> None:
    for path, function in NAMED_TEST.findall(why):
        assert (ROOT / path).exists()
        assert not function or f"def {function}(" in (ROOT / path).read_text()


def test_ray_parses_its_commands() -> None:
    from ray.scripts.scripts import cli as ray

    for page in PAGES:
        for words in find_commands(page):
            if words[0] != "ray":
                continue
            command = ray.commands[words[1]]
            rest = words[2:]
            if hasattr(command, "commands"):
                command = command.commands[rest[0]]
                rest = rest[1:]
            command.make_context(words[1], rest)  # raises click's UsageError
