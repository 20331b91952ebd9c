"""Validation of a document as a job or a training job. All problems are raised in one error."""

from collections.abc import Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from synthgen import registry
from synthgen.config.job import SECTIONS, Job
from synthgen.layouts.base import InfeasibleLayoutError
from synthgen.training.base import TaskSpec
from synthgen.yamlfile import ConfigError, Document, KeyPath

SCHEMA_LABELS = ("function-", "tuple[", "constrained-", "dict[")
"""Prefixes of those parts of an error's location that name a pydantic type instead of a key."""
SHORT_FORM_KEYS = ("range", "count")
"""Keys whose mapping can be left out: `size: [56, 88]` means `size: {range: [56, 88]}`."""


class Validation:
    """Validates a document in which recipes are already replaced by their keys.

    All problems are collected, and raised in one error at the end.

    Args:
        missing: sections whose recipe was not found; these sections are not validated.
    """

    def __init__(self, document: Document, missing: Sequence[str] = ()) -> None:
        self.document = document
        self.missing = missing
        self.problems = list(document.problems)

    def validate_job(self) -> Job:
        """Return the document as a job.

        Raises:
            ConfigError: the document is not a valid job; the error lists every problem.
        """
        data = dict(self.document.data)
        skipped = []
        for section, key in SECTIONS.items():
            if section not in data:
                continue
            is_disabled = section == "verify" and data[section] is None
            if section in self.missing:
                data[section] = None
            elif not is_disabled:
                data[section] = self.validate_section(section, key)
            if data[section] is None:
                skipped.append(section)
        job = self.validate_model(Job, data, (), skipped)
        if job is not None:
            self.check_consistency(job)
        if self.problems or job is None:
            raise ConfigError(self.problems)
        return job

    def validate_training(self) -> TaskSpec:
        """Return the document as a training job.

        Raises:
            ConfigError: the document is not a valid training job; the error lists every problem.
        """
        spec = self.validate_spec(self.document.data, "task", ())
        if spec is not None:
            for problem in spec.check():
                key, _, text = problem.partition(": ")
                self.add_problem((key,), text)
        if self.problems:
            raise ConfigError(self.problems)
        return spec

    def validate_section(self, section: str, key: str) -> Any:
        """Return the spec of a section; None if the section is invalid."""
        data = self.document.data[section]
        if not isinstance(data, dict):
            self.add_problem((section,), f"{data!r}: give the name of a recipe, or a mapping")
            return None
        return self.validate_spec(data, key, (section,))

    def validate_spec(self, data: dict[str, Any], key: str, path: KeyPath) -> Any:
        """Return the data as the spec that `data[key]` names; None if the data is invalid."""
        name = data.get(key)
        known = registry.list_names(key)
        if name in known:
            return self.validate_model(registry.load_spec_class(key, str(name)), data, path)
        if key in data:
            reason = f"{name!r} is not a {key}{suggest_name(str(name), known)}"
        else:
            reason = f"missing; it names the {key}"
        self.add_problem((*path, key), f"{reason}; there are: {', '.join(known)}")
        return None

    def validate_model(
        self, model: type[BaseModel], data: Any, path: KeyPath, skipped: Sequence[str] = ()
    ) -> Any:
        """Return the data as an instance of a model; None if the data is invalid.

        Args:
            path: the key path of the data in the document.
            skipped: keys whose errors are ignored, because they have been reported already.
        """
        try:
            return model.model_validate(data)
        except ValidationError as error:
            for detail in error.errors():
                location = detail["loc"]
                if not (location and location[0] in skipped):
                    self.add_error(model, detail, path)
            return None

    def add_error(self, model: type[BaseModel], detail: ErrorDetails, path: KeyPath) -> None:
        """Add a problem for an error that pydantic found."""
        location = detail["loc"]
        key_path = path
        for part in location:
            if not str(part).startswith(SCHEMA_LABELS):
                key_path = (*key_path, part)
        is_in_document = key_path in self.document.places
        if not is_in_document and key_path and key_path[-1] in SHORT_FORM_KEYS:
            key_path = key_path[:-1]
        if detail["type"] == "extra_forbidden":
            hint = suggest_name(str(key_path[-1]), _list_keys(model, location[:-1]))
            self.add_problem(key_path, f"unknown key{hint}")
        elif detail["type"] == "missing":
            self.add_problem(key_path, "missing; this key must be given")
        elif detail["type"] == "value_error":
            message = str(detail["ctx"]["error"])
            key, _, reason = message.partition(": ")
            if key in _list_keys(model, location):
                self.add_problem((*key_path, key), reason)
            else:
                self.add_problem(key_path, message)
        else:
            message = detail["msg"]
            reason = f"{message[0].lower()}{message[1:]}"
            self.add_problem(key_path, f"{detail['input']!r}: {reason}")

    def check_consistency(self, job: Job) -> None:
        """Add the problems that depend on several keys or sections of a job.

        It is checked whether the category ids are valid, whether the boxes fit on the canvas,
        whether the pipeline can generate these layouts, and whether the verifier can verify them.
        """
        try:
            job.ids()
        except ValueError as error:
            self.add_problem(("layout", "objects"), str(error))
        try:
            job.layout.check_feasible()
        except InfeasibleLayoutError as error:
            self.add_problem(("layout", "objects"), str(error).removeprefix("objects: "))
        problems = {
            "pipeline": job.pipeline.check(job.layout, job.scene),
            "verify": job.verify.check(job.layout) if job.verify else [],
        }
        if not job.pipeline.follows_background_prompt:
            for name in job.scene.atmosphere():
                self.add_problem(
                    ("scene", name),
                    f"{job.pipeline.method} cannot generate {name}, so the prompt would be wrong; "
                    "leave it out",
                )
        for section, section_problems in problems.items():
            for problem in section_problems:
                key, _, text = problem.partition(": ")
                self.add_problem((section, key), text)

    def add_problem(self, path: KeyPath, text: str) -> None:
        """Add a problem with the key at a path, unless the same problem was added before."""
        place = self.document.place(path)
        dotted = ".".join(map(str, path))
        line = f"{place}: {dotted}: {text}" if dotted else f"{place}: {text}"
        if line not in self.problems:
            self.problems.append(line)


def _list_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the model nested at a location; [] unless there is exactly one model."""
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        is_union = get_origin(annotation) in (Union, UnionType)
        choices = get_args(annotation) if is_union else (annotation,)
        models = []
        for choice in choices:
            if isinstance(choice, type) and issubclass(choice, BaseModel):
                models.append(choice)
        if len(models) != 1:
            return []
        model = models[0]
    return list(model.model_fields)


def suggest_name(word: str, known: Sequence[str]) -> str:
    """Return a question that names the most similar known word, or "" if no word is similar."""
    matches = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
