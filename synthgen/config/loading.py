"""Reading jobs and recipes: YAML files and `key=value` overrides become one validated `Job`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

from synthgen import registry
from synthgen.config.job import SECTIONS, Job
from synthgen.config.validation import Validation, suggest_name
from synthgen.dataset.categories import COCO_IDS
from synthgen.spec import flatten
from synthgen.speech import Spoken
from synthgen.speech.understand import understand
from synthgen.training.base import TaskSpec
from synthgen.yamlfile import ConfigError, Document, KeyPath, parse_yaml, read_yaml

RECIPES = {"layout": "layouts", "pipeline": "pipelines", "job": "jobs"}
"""The kinds of recipe files, and the folder of each kind."""
JOB_KEYS = {"version", "layout", "pipeline"}
"""Keys of which every job has one: a file without any may be a file of another program."""
COMMAND_LINE = "command line"


def load_job(name: str, overrides: Sequence[str] = (), said: Spoken | None = None) -> Job:
    """Read and validate a job file with its recipes and overrides.

    Args:
        name: the path of a job file, or the name of a shipped job.
        overrides: `key=value` texts, which take precedence over the file.
        said: a spoken prompt. It takes precedence over the file and over overrides of whole
            sections, but not over those of single keys (`scene.background=sand`).

    Raises:
        ConfigError: there are problems, each listed as `file:line: key.path: what is wrong`.
        InputError: the spoken prompt has no words.

    Examples:
        >>> job = load_job("100dogs", ["images=4", "layout.objects={dog: 30}"])
        >>> job.images
        4
    """
    return parse_job(read_yaml(find_recipe("job", name)), name, overrides, said)


def parse_job(
    document: Document, name: str, overrides: Sequence[str] = (), said: Spoken | None = None
) -> Job:
    """Return the job of a document; arguments and errors are those of `load_job`."""
    if not isinstance(document.data, dict):
        raise ConfigError([f"{document.place(())}: a job is a mapping of keys to values"])
    document = _translate(document, name)
    if "task" in document.data:
        place = document.place(("task",))
        raise ConfigError([f"{place}: task: this is a training job; use: synthgen train {name}"])
    section_changes: list[_Override] = []
    key_changes: list[_Override] = []
    for text in overrides:
        override = _parse_override(text)
        changes = section_changes if len(override.path) == 1 else key_changes
        changes.append(override)
    _apply(document, section_changes)
    missing = [section for section in SECTIONS if not _inline_recipe(document, section)]
    if said is not None:
        _apply(document, _convert_prompt(document.data, said))
    _apply(document, key_changes)
    return _validate(document, missing)


def _translate(document: Document, name: str) -> Document:
    """Return the job for another program's file if a method reads such files, else the document."""
    if not JOB_KEYS.isdisjoint(document.data):
        return document
    for method in registry.list_names("method"):
        translated = registry.load_spec_class("method", method).read_document(document, name)
        if translated is not None:
            return translated
    return document


def _validate(document: Document, missing: Sequence[str] = ()) -> Job:
    """Return the job of a document whose recipes are inline.

    Args:
        missing: sections whose recipe was not found.

    Raises:
        ConfigError: there are problems; the message lists all of them.
    """
    job = Validation(document, missing).validate_job()
    keys = flatten(job.to_dict())
    job._given = frozenset(key for key in keys if _is_set_by_user(document, key.split(".")))
    return job


def _is_set_by_user(document: Document, key: Sequence[str]) -> bool:
    """Return whether a key is in the document, and not from a shipped file.

    For a key of a short form, such as `size.range` of `size: [56, 88]`, the short form counts.
    """
    node: Any = document.data
    path: KeyPath = ()
    for part in key:
        if not isinstance(node, dict):
            break
        if part not in node:
            return False
        node = node[part]
        path = (*path, part)
    file, _, line = document.place(path).rpartition(":")
    return not (line.isdecimal() and _is_shipped(Path(file)))


def replace_values(job: Job, values: dict[str, Any], place: str) -> Job:
    """Return the job with other values of some keys, validated again.

    Args:
        values: {dotted key: value}.
        place: the origin of the values, for messages.

    Raises:
        ConfigError: the job is not valid with these values.
    """
    document = Document(job.to_dict(), {(): place})
    _apply(document, _create_overrides(values, place))
    return _validate(document)


def load_training(name: str, overrides: Sequence[str] = ()) -> TaskSpec:
    """Read and validate a training job with its overrides.

    Args:
        name: the path of a training job, or the name of a shipped one.
        overrides: `key=value` texts.

    Raises:
        ConfigError: there are problems, each listed as `file:line: key.path: what is wrong`.
    """
    document = read_yaml(find_recipe("job", name))
    if not isinstance(document.data, dict) or "task" not in document.data:
        raise ConfigError(
            [
                f"{document.place(())}: not a training job (it names no task); for a dataset: "
                f"synthgen run {name}"
            ]
        )
    _apply(document, [_parse_override(text) for text in overrides])
    return Validation(document).validate_training()


def find_recipe(kind: str, name: str) -> Path:
    """Return the file of a recipe or job.

    Args:
        kind: "layout", "pipeline" or "job".
        name: a path, or the name of a file in the folder of this kind, in the working directory or
            in the package.

    Raises:
        ConfigError: there is no such file; the message lists the existing names and the folders.
    """
    if name.endswith((".yaml", ".yml", ".json")):
        if isfile(name):  # unlike Path.is_file, this is False for an invalid path
            return Path(name)
        raise ConfigError([f"{name}: no such {kind} file"])
    folders = _recipe_folders(kind)
    if re.fullmatch(r"[\w.-]+", name):
        for folder in folders:
            file = folder / f"{name}.yaml"
            if isfile(file):
                return file
    known = list_recipe_names(kind)
    no_folder = ", and no such folder" if "/" in name else ""
    hint = suggest_name(name, known)
    searched = ", ".join(map(str, folders))
    raise ConfigError(
        [
            f"{name}: no such {kind}{no_folder}{hint}; there are: {', '.join(known)} "
            f"(looked in {searched})"
        ]
    )


def list_recipe_names(kind: str) -> list[str]:
    """Return the sorted names of the recipes or jobs in the working directory and the package."""
    names: set[str] = set()
    for folder in _recipe_folders(kind):
        names.update(file.stem for file in folder.glob("*.yaml"))
    return sorted(names)


def _recipe_folders(kind: str) -> list[Path]:
    """Return the folders of a kind of recipe: in the working directory, and the shipped one."""
    package = Path(__file__).parents[1]
    in_wheel = package / "recipes"
    shipped = in_wheel if in_wheel.is_dir() else package.parent
    return [Path(RECIPES[kind]), shipped / RECIPES[kind]]


def _is_shipped(file: Path) -> bool:
    """Return whether a file is a job or recipe of the package."""
    for kind in RECIPES:
        _, shipped = _recipe_folders(kind)
        if file.resolve().is_relative_to(shipped.resolve()):
            return True
    return False


@dataclass(frozen=True)
class _Override:
    """A value for a key, and the origin of the value."""

    path: KeyPath
    value: Any
    place: str


def _create_overrides(values: dict[str, Any], place: str) -> list[_Override]:
    """Return overrides for {dotted key: value}."""
    return [_Override(tuple(key.split(".")), value, place) for key, value in values.items()]


def _parse_override(text: str) -> _Override:
    """Return the override of a `key=value` text.

    Raises:
        ConfigError: the text is not key=value, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    path = tuple(key.split("."))
    if not equals or not all(path):
        raise ConfigError(
            [
                f"{COMMAND_LINE}: {text!r}: an override is key=value, such as images=1000 or "
                "pipeline.steps=12"
            ]
        )
    data = parse_yaml(value, f"{COMMAND_LINE}: {key}").data
    return _Override(path, data, COMMAND_LINE)


def _apply(document: Document, overrides: Sequence[_Override]) -> None:
    """Set each override in the document; missing parents of its key become mappings.

    Raises:
        ConfigError: a parent of the key is not a mapping.
    """
    for override in overrides:
        node = document.data
        for depth, key in enumerate(override.path[:-1], 1):
            parent = override.path[:depth]
            if key not in node:
                node[key] = {}
                document.places[parent] = override.place
            node = node[key]
            if not isinstance(node, dict):
                dotted = ".".join(map(str, override.path))
                dotted_parent = ".".join(map(str, parent))
                raise ConfigError([f"{override.place}: {dotted}: {dotted_parent} is not a mapping"])
        node[override.path[-1]] = override.value
        for path in list(document.places):
            if path[: len(override.path)] == override.path:
                del document.places[path]
        document.places[override.path] = override.place


def _convert_prompt(data: dict[str, Any], said: Spoken) -> list[_Override]:
    """Return a spoken prompt as overrides.

    Args:
        data: a job with inline recipes, whose categories the prompt may name.
    """
    layout = data.get("layout")
    if not isinstance(layout, dict):
        layout = {}
    known = list(COCO_IDS)
    for section in (data.get("categories"), layout.get("objects")):
        if isinstance(section, dict):
            known += map(str, section)
    understood = understand(said, known)
    settings = {**understood.settings(), "spoken": understood.model_dump(mode="json")}
    if understood.objects and layout.get("total") is not None:
        settings["layout.total"] = None  # counts replace shares of a total
    return _create_overrides(settings, f"spoken ({said.text!r})")


def _inline_recipe(document: Document, section: str) -> bool:
    """Replace the name of a section's recipe with the contents of the recipe.

    Returns:
        False if there is no such recipe, which is recorded as a problem of the document.
    """
    name = document.data.get(section)
    if not isinstance(name, str):
        return True
    if section not in RECIPES:  # such a section has no recipe files: it is named by its spec
        document.data[section] = {SECTIONS[section]: name}
        return True
    try:
        recipe = read_yaml(find_recipe(section, name))
    except ConfigError as error:
        place = document.place((section,))
        document.problems += [f"{place}: {section}: {problem}" for problem in error.problems]
        document.data[section] = {}
        return False
    document.data[section] = recipe.data
    document.problems += recipe.problems
    for path, place in recipe.places.items():
        document.places[(section, *path)] = place
    return True
