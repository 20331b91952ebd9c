"""YAML read as data, with the file and line of every key."""

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
MAX_NODES = 100_000  # aliases multiply: a file of a few lines can stand for billions of values


class ConfigError(InputError):
    """One line a problem of a job or recipe, each with file, line, key, value and what would be right."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(" ".join(problem.splitlines()) for problem in problems))


@dataclass
class Document:
    """Plain data and where each key of it stands.

    Attributes:
        data: mappings, lists and scalars.
        places: file and line of each key path, as "file:line".
        problems: what is wrong with the text itself (duplicate keys).
    """

    data: Any
    places: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def place(self, path: KeyPath) -> str:
        """Where a key stands, or the nearest key that it would belong to."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "job")


def read_yaml(path: Path) -> Document:
    """Read one YAML file as data.

    Raises:
        ConfigError: it cannot be read or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8 text"]) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Document:
    """Read YAML text; `name` stands for the file in messages.

    Raises:
        ConfigError: it is not YAML, or it holds more than MAX_NODES values.
    """
    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(StringIO(text))
        document = Document(None)
        document.data = (
            _Walk(name, yaml.constructor, document).value(node, ()) if node is not None else None
        )
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError([f"{name}:{line}: not YAML: {error.problem or error.context}"]) from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            [f"{name}:1: not YAML: {(str(error) or type(error).__name__).splitlines()[0]}"]
        ) from None
    document.places.setdefault((), f"{name}:1")  # of a file without any
    return document


class _Walk:
    """Turns a node tree into plain data, noting where every key stands."""

    def __init__(self, name: str, constructor: SafeConstructor, document: Document) -> None:
        self.name, self.constructor, self.document, self.count = name, constructor, document, 0

    def value(self, node: Node, path: KeyPath) -> Any:
        self.count += 1
        if self.count > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES} values")
        self.document.places.setdefault(path, f"{self.name}:{node.start_mark.line + 1}")
        if isinstance(node, MappingNode | SequenceNode) and str(node.tag) not in COLLECTIONS:
            raise self.refused(node, f"the tag {node.tag!s} is not data")
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        return self.scalar(node)

    def scalar(self, node: Node) -> Any:
        """A text, a number, true, false or null."""
        try:
            value = self.constructor.construct_object(node)
        except LookupError:
            raise self.refused(node, f"{node.value!r} is not what its tag says") from None
        except ValueError as error:
            raise self.refused(node, f"{str(node.value)[:40]!r}: {error}") from None
        if not isinstance(value, str | int | float | bool | None):
            raise self.refused(
                node, f"{node.value!r} is a {type(value).__name__}; for a text put it in quotes"
            )
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise self.refused(node, "half of a surrogate pair is no character")
        return value

    def refused(self, node: Node, why: str) -> ConstructorError:
        return ConstructorError(None, None, why, node.start_mark)

    def mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise self.refused(key_node, "a key is a text or a number")
            key = str(self.scalar(key_node))
            place = f"{self.name}:{key_node.start_mark.line + 1}"
            if key in result:
                dotted = ".".join(map(str, (*path, key)))
                self.document.problems.append(f"{place}: {dotted}: this key stands twice; keep one")
                continue
            self.document.places[(*path, key)] = place
            result[key] = self.value(value_node, (*path, key))
        return result
