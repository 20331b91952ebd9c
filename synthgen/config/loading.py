"""Jobs and recipes: YAML files and `key=value` overrides in, one frozen, validated `Job` out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

from synthgen import registry
from synthgen.config.job import SECTIONS, Job
from synthgen.config.validation import Validation, did_you_mean
from synthgen.dataset.categories import COCO_IDS
from synthgen.spec import flat
from synthgen.speech import Spoken
from synthgen.speech.understand import understand
from synthgen.training.base import TaskSpec
from synthgen.yamlfile import ConfigError, Document, KeyPath, parse_yaml, read_yaml

RECIPES = {"layout": "layouts", "pipeline": "pipelines", "job": "jobs"}
JOB_KEYS = {
    "version",
    "layout",
    "pipeline",
}  # a file that has none of them may be another program's
COMMAND_LINE = "command line"


def load_job(name: str, overrides: Sequence[str] = (), said: Spoken | None = None) -> Job:
    """Read a job file (a path, or the name of a shipped job), its recipes and `key=value` overrides, and check all.

    Args:
        said: replaces keys of the file too; an override goes before it.

    Raises:
        ConfigError: with every problem at once, each as `file:line: key.path: what is wrong`.
        InputError: no words were said.
    """
    return job_of(read_yaml(find_recipe("job", name)), name, overrides, said)


def job_of(
    document: Document, name: str, overrides: Sequence[str] = (), said: Spoken | None = None
) -> Job:
    """The same of a file that was read; `name` is what to call it."""
    if not isinstance(document.data, dict):
        raise ConfigError([f"{document.place(())}: a job is a mapping of keys to values"])
    document = _translated(document, name)
    if "task" in document.data:
        raise ConfigError(
            [
                f"{document.place(('task',))}: task: this is a training job; use: synthgen train {name}"
            ]
        )
    changes = [_parse_override(text) for text in overrides]
    _apply(document, [c for c in changes if len(c.path) == 1])
    unread = [section for section in SECTIONS if not _inline(document, section)]
    if said is not None:
        _apply(document, _spoken(document.data, said))
    _apply(document, [c for c in changes if len(c.path) > 1])
    return _validated(document, unread)


def _translated(document: Document, name: str) -> Document:
    """Return the job that stands for another program's file, where a method reads such files; else the document."""
    if not JOB_KEYS.isdisjoint(document.data):
        return document
    for method in registry.names("method"):
        translated = registry.spec_class("method", method).read_document(document, name)
        if translated is not None:
            return translated
    return document


def _validated(document: Document, unread: Sequence[str] = ()) -> Job:
    """Return the job of a document whose recipes are inline.

    Args:
        unread: sections whose recipe was not found.

    Raises:
        ConfigError: with every problem at once.
    """
    job = Validation(document, unread).job()
    job._given = frozenset(
        key for key in flat(job.resolved()) if _is_given(document, key.split("."))
    )
    return job


def _is_given(document: Document, key: Sequence[str]) -> bool:
    """Whether a key stands in the document, or what it is a part of in a short form, and not in a shipped file."""
    node: Any = document.data
    path: KeyPath = ()
    for part in key:
        if not isinstance(node, dict):
            break
        if part not in node:
            return False
        node, path = node[part], (*path, part)
    file, _, line = document.place(path).rpartition(":")
    return not (line.isdecimal() and _is_shipped(Path(file)))


def with_values(job: Job, values: dict[str, Any], place: str) -> Job:
    """The same job with other values of some keys, checked again.

    Args:
        values: dotted key to value.
        place: where they come from, for messages.

    Raises:
        ConfigError: it does not hold together with them.
    """
    document = Document(job.resolved(), {(): place})
    _apply(
        document, [_Override(tuple(key.split(".")), value, place) for key, value in values.items()]
    )
    return _validated(document)


def load_training(name: str, overrides: Sequence[str] = ()) -> TaskSpec:
    """Read a training job (a path, or the name of a shipped one) and `key=value` overrides, and check all.

    Raises:
        ConfigError: with every problem at once, each as `file:line: key.path: what is wrong`.
    """
    document = read_yaml(find_recipe("job", name))
    if not isinstance(document.data, dict) or "task" not in document.data:
        raise ConfigError(
            [
                f"{document.place(())}: not a training job (it names no task); for a dataset: synthgen run {name}"
            ]
        )
    _apply(document, [_parse_override(text) for text in overrides])
    return Validation(document).training()


def find_recipe(kind: str, name: str) -> Path:
    """The file of a recipe (kind "layout", "pipeline") or job: a path, or a name looked up here and in the package.

    Raises:
        ConfigError: there is none; the message lists what exists and where it was looked for.
    """
    if name.endswith((".yaml", ".yml", ".json")):
        if isfile(name):  # unlike Path's, this says no to a name that cannot be one
            return Path(name)
        raise ConfigError([f"{name}: no such {kind} file"])
    for folder in _recipe_folders(kind):
        if re.fullmatch(r"[\w.-]+", name) and isfile(folder / f"{name}.yaml"):
            return folder / f"{name}.yaml"
    looked = ", ".join(str(f) for f in _recipe_folders(kind))
    hint = did_you_mean(name, recipe_names(kind))
    nor = ", and no such folder" if "/" in name else ""
    raise ConfigError(
        [
            f"{name}: no such {kind}{nor}{hint}; there are: {', '.join(recipe_names(kind))} (looked in {looked})"
        ]
    )


def recipe_names(kind: str) -> list[str]:
    """Names of the recipes or jobs that can be found from here."""
    return sorted({p.stem for folder in _recipe_folders(kind) for p in folder.glob("*.yaml")})


def _recipe_folders(kind: str) -> list[Path]:
    package = Path(__file__).parents[1]
    shipped = (
        package / "recipes" if (package / "recipes").is_dir() else package.parent
    )  # wheel, or checkout
    return [Path(RECIPES[kind]), shipped / RECIPES[kind]]


def _is_shipped(file: Path) -> bool:
    """Whether a file is a job or recipe of the package."""
    return any(
        file.resolve().is_relative_to(_recipe_folders(kind)[1].resolve()) for kind in RECIPES
    )


@dataclass(frozen=True)
class _Override:
    path: KeyPath
    value: Any
    place: str = COMMAND_LINE


def _parse_override(text: str) -> _Override:
    key, equals, value = text.partition("=")
    if not equals or not key or not all(key.split(".")):
        raise ConfigError(
            [
                f"{COMMAND_LINE}: {text!r}: an override is key=value, such as images=1000 or pipeline.steps=12"
            ]
        )
    return _Override(tuple(key.split(".")), parse_yaml(value, f"{COMMAND_LINE}: {key}").data)


def _apply(document: Document, changes: Sequence[_Override]) -> None:
    """Set each override in the document's data; the keys above it become mappings where they are not there."""
    for change in changes:
        node = document.data
        for i, key in enumerate(change.path[:-1]):
            if key not in node:
                node[key], document.places[change.path[: i + 1]] = {}, change.place
            node = node[key]
            if not isinstance(node, dict):
                dotted = ".".join(map(str, change.path[: i + 1]))
                raise ConfigError(
                    [
                        f"{change.place}: {'.'.join(map(str, change.path))}: {dotted} is not a mapping"
                    ]
                )
        node[change.path[-1]] = change.value
        for path in [p for p in document.places if p[: len(change.path)] == change.path]:
            del document.places[path]
        document.places[change.path] = change.place


def _spoken(data: dict[str, Any], said: Spoken) -> list[_Override]:
    """What was said as overrides, with the categories that a job (its recipes inline) knows."""
    layout = data["layout"] if isinstance(data.get("layout"), dict) else {}
    own = [
        section
        for section in (data.get("categories"), layout.get("objects"))
        if isinstance(section, dict)
    ]
    understood = understand(said, [*COCO_IDS, *(str(name) for section in own for name in section)])
    settings = {**understood.settings(), "spoken": understood.model_dump(mode="json")}
    if understood.objects and layout.get("total") is not None:
        settings["layout.total"] = None  # of shares, which counts replace
    return [
        _Override(tuple(key.split(".")), value, f"spoken ({said.text!r})")
        for key, value in settings.items()
    ]


def _inline(document: Document, section: str) -> bool:
    """Put the named recipe in the place of its name; False if there is none, which is noted as a problem."""
    name = document.data.get(section)
    if not isinstance(name, str):
        return True
    if section not in RECIPES:  # no recipes of these: the name alone
        document.data[section] = {SECTIONS[section]: name}
        return True
    try:
        recipe = read_yaml(find_recipe(section, name))
    except ConfigError as error:
        place = document.place((section,))
        document.problems += [f"{place}: {section}: {p}" for p in error.problems]
        document.data[section] = {}
        return False
    document.data[section] = recipe.data
    document.problems += recipe.problems
    document.places.update({(section, *path): place for path, place in recipe.places.items()})
    return True
