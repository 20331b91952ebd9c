"""Documentation, docstrings and messages use the words of the glossary in CONTRIBUTING.md.

CONTRIBUTING.md also lists the refused words. Code is not checked: fenced blocks, text in backticks,
the targets of links, and the names of arguments and attributes in a docstring.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.commands import FENCED, PAGES, ROOT

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
TEXTS = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "synthgen/weights/README.md"]
MODULES = sorted((ROOT / "synthgen").rglob("*.py"))
WORD_LIST = re.compile(r"<!-- refused words -->\n```text\n(.*?)```", re.DOTALL)
GLOSSARY = re.compile(r"^## Words\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
# Code, comments, the targets of links, and the names of arguments and attributes in a docstring.
NOT_PROSE = re.compile(
    r"``.+?``|`[^`]+`|<!--.*?-->|\]\([^)]*\)|https?://\S+|^ +\w+:(?=\s)", re.DOTALL | re.MULTILINE
)
MESSAGE_CALLS = {
    "add_argument",
    "add_argument_group",
    "add_parser",
    "debug",
    "error",
    "exception",
    "Field",
    "info",
    "print",
    "warn",
    "warning",
}


def compile_refused_words() -> re.Pattern[str]:
    """Return a pattern that matches each refused word of CONTRIBUTING.md as a whole word."""
    listed = WORD_LIST.search(CONTRIBUTING.read_text())
    assert listed, "CONTRIBUTING.md has no list of refused words"
    alternatives = []
    for word in re.split(r"[,\n]", listed[1]):
        if word.strip():
            alternatives.append(r"\s+".join(word.split()).replace("*", r"\w*"))
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b", re.IGNORECASE)


REFUSED = compile_refused_words()


def blank_out(match: re.Match[str]) -> str:
    """Return the line ends of a match, so that later lines keep their numbers."""
    return " " + "\n" * match[0].count("\n")


def find_refused_words(text: str) -> list[tuple[int, str]]:
    """Return the line, counted from 0, and the word of each refused word in a text's prose."""
    prose = NOT_PROSE.sub(blank_out, FENCED.sub(blank_out, text))
    return [(prose.count("\n", 0, word.start()), word[0]) for word in REFUSED.finditer(prose)]


def find_messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each docstring and of each string in a message.

    Messages are the strings in `raise` statements, in calls of exceptions, and in the calls that
    `MESSAGE_CALLS` names: logging, argparse and pydantic's Field.
    """
    for node in ast.walk(tree):
        is_docstring = isinstance(node, ast.Expr) and is_text(node.value)
        is_call = isinstance(node, ast.Call) and is_message(node)
        if is_docstring or is_call or isinstance(node, ast.Raise):
            yield from find_strings(node)


def is_text(node: ast.AST) -> bool:
    """Return whether a node is a string constant."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def is_message(call: ast.Call) -> bool:
    """Return whether a call takes messages for a reader."""
    name = ast.unparse(call.func).split(".")[-1]
    return name in MESSAGE_CALLS or name.endswith("Error")


def find_strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each string inside a node, constant or formatted."""
    inside_formatted = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = ""
            for value in node.values:
                inside_formatted.add(value)
                text += str(value.value) if isinstance(value, ast.Constant) else "{}"
            yield node.lineno, text
        elif is_text(node) and node not in inside_formatted:
            assert isinstance(node, ast.Constant)
            yield node.lineno, str(node.value)


def name_file(path: Path) -> str:
    """Return the path of a file in the repository."""
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", TEXTS, ids=name_file)
def test_pages_use_the_words_of_the_glossary(page: Path) -> None:
    text = page.read_text()
    if page == CONTRIBUTING:
        text = GLOSSARY.sub(blank_out, text)
    found = [f"{name_file(page)}:{line + 1}: {word}" for line, word in find_refused_words(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("module", MODULES, ids=name_file)
def test_docstrings_and_messages_use_the_words_of_the_glossary(module: Path) -> None:
    found = set()
    for start, text in find_messages(ast.parse(module.read_text(encoding="utf-8"))):
        for line, word in find_refused_words(text):
            found.add((start + line, word))
    lines = [f"{name_file(module)}:{line}: {word}" for line, word in sorted(found)]
    assert not lines, "\n".join(lines)


def test_refused_words_are_found_in_prose_and_not_in_code() -> None:
    prose = "A picture.\n\nWhat nobody\nasked for is Painted."
    assert find_refused_words(prose) == [(0, "picture"), (2, "nobody\nasked for"), (3, "Painted")]
    code = (
        "`paint` [a](my/pictures) paints_into_pictures MixturePainter heartbeat\n```\npaint\n```\n"
    )
    assert find_refused_words(code) == []
    assert find_refused_words("Args:\n    picture: the image.\n") == []


def test_messages_are_found_and_other_strings_are_not() -> None:
    source = '''
"""A module."""
prompt = "a picture"
log.warning("a warning of %s", prompt)
def check(value):
    """A function."""
    if not value:
        raise ValueError(f"bad {value}: must be " "true")
parser.add_argument("--value", help="a help text")
'''
    messages = [text for _, text in find_messages(ast.parse(source))]
    assert sorted(set(messages)) == [
        "--value",
        "A function.",
        "A module.",
        "a help text",
        "a warning of %s",
        "bad {}: must be true",
    ]
