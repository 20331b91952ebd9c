"""YAML files read as plain data, with the file and line of every key."""

from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from synthgen.errors import InputError

KeyPath = tuple[str | int, ...]
COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
MAX_NODES = 100_000
"""The most values of a file: aliases multiply, so a few lines can expand to billions of values."""


class ConfigError(InputError):
    """Problems of a job or recipe, one line each.

    A line gives the file, line, key and value, and says what would be right.

    Examples:
        >>> try:
        ...     load_job("100dogs", ["images=0"])
        ... except ConfigError as error:
        ...     print(error)
        command line: images: 0: input should be greater than or equal to 1
    """

    def __init__(self, problems: list[str]) -> None:
        lines = [" ".join(problem.splitlines()) for problem in problems]
        super().__init__("\n".join(lines))


@dataclass
class Document:
    """Plain data, with the file and line of each key.

    Attributes:
        data: mappings, lists and scalars.
        places: the file and line of each key path, as "file:line".
        problems: problems of the text itself, such as duplicate keys.
    """

    data: Any
    places: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def place(self, path: KeyPath) -> str:
        """Return the file and line of a key, or of its nearest parent that is in the file."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "job")


def read_yaml(path: Path) -> Document:
    """Read a YAML file as data.

    Raises:
        ConfigError: the file cannot be read, or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8 text"]) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Document:
    """Parse YAML text.

    Args:
        name: the name of the file, for messages.

    Raises:
        ConfigError: the text is not YAML, or has more than MAX_NODES values.
    """
    yaml = YAML(typ="safe", pure=True)
    document = Document(None)
    try:
        node = yaml.compose(StringIO(text))
        if node is not None:
            document.data = _Converter(name, yaml.constructor, document).convert(node, ())
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError([f"{name}:{line}: not YAML: {error.problem or error.context}"]) from None
    except (YAMLError, ValueError, RecursionError) as error:
        message = str(error) or type(error).__name__
        raise ConfigError([f"{name}:1: not YAML: {message.splitlines()[0]}"]) from None
    document.places.setdefault((), f"{name}:1")  # the only place in a file without values
    return document


class _Converter:
    """Converts a node tree to plain data and records the place of every key in the document."""

    def __init__(self, name: str, constructor: SafeConstructor, document: Document) -> None:
        self.name = name
        self.constructor = constructor
        self.document = document
        self.count = 0

    def convert(self, node: Node, path: KeyPath) -> Any:
        """Return the value of a node.

        Raises:
            ConstructorError: the node is not plain data.
            ValueError: the text has more than MAX_NODES values.
        """
        self.count += 1
        if self.count > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES} values")
        self.document.places.setdefault(path, self.place_of(node))
        if isinstance(node, MappingNode | SequenceNode) and str(node.tag) not in COLLECTIONS:
            raise self.error_at(node, f"the tag {node.tag!s} is not data")
        if isinstance(node, MappingNode):
            return self.convert_mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.convert(item, (*path, i)) for i, item in enumerate(node.value)]
        return self.convert_scalar(node)

    def convert_scalar(self, node: Node) -> Any:
        """Return a text, a number, true, false or null."""
        try:
            value = self.constructor.construct_object(node)
        except LookupError:
            raise self.error_at(node, f"{node.value!r} does not match its tag") from None
        except ValueError as error:
            raise self.error_at(node, f"{str(node.value)[:40]!r}: {error}") from None
        if not isinstance(value, str | int | float | bool | None):
            kind = type(value).__name__
            raise self.error_at(node, f"{node.value!r} is a {kind}; for a text put it in quotes")
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise self.error_at(node, "an unpaired surrogate is not a character")
        return value

    def convert_mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        """Return a mapping; a duplicate key is recorded as a problem, and its first value stays."""
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise self.error_at(key_node, "a key is a text or a number")
            key = str(self.convert_scalar(key_node))
            place = self.place_of(key_node)
            if key in result:
                dotted = ".".join(map(str, (*path, key)))
                self.document.problems.append(f"{place}: {dotted}: duplicate key; keep one")
                continue
            self.document.places[(*path, key)] = place
            result[key] = self.convert(value_node, (*path, key))
        return result

    def place_of(self, node: Node) -> str:
        """Return the file and line of a node."""
        return f"{self.name}:{node.start_mark.line + 1}"

    def error_at(self, node: Node, reason: str) -> ConstructorError:
        """Return an error that names the line of a node."""
        return ConstructorError(None, None, reason, node.start_mark)
