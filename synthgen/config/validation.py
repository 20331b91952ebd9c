"""A document checked against what a job, or a training job, may say: every problem in one error."""

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


class Validation:
    """Validates a document whose recipes are inline, gathering every problem.

    Args:
        unread: sections whose recipe was not found; the rest is looked at without them.
    """

    def __init__(self, document: Document, unread: Sequence[str] = ()) -> None:
        self.document, self.problems, self.unread = document, list(document.problems), unread

    def job(self) -> Job:
        data = dict(self.document.data)
        for section, key in SECTIONS.items():
            if section in data and not (section == "verify" and data[section] is None):
                data[section] = None if section in self.unread else self.section(section, key)
        job = self.model(Job, data, (), skip=[s for s in SECTIONS if data.get(s, ...) is None])
        if job is not None:
            self.check_together(job)
        if self.problems or job is None:
            raise ConfigError(self.problems)
        return job

    def training(self) -> TaskSpec:
        spec = self.named(self.document.data, "task", ())
        for problem in spec.check() if spec is not None else []:
            key, _, text = problem.partition(": ")
            self.problem((key,), text)
        if self.problems:
            raise ConfigError(self.problems)
        return spec

    def section(self, section: str, key: str) -> Any:
        """The spec of a layout or pipeline section; None if it is wrong."""
        data = self.document.data[section]
        if not isinstance(data, dict):
            return self.problem((section,), f"{data!r}: give the name of a recipe, or a mapping")
        return self.named(data, key, (section,))

    def named(self, data: dict[str, Any], key: str, path: KeyPath) -> Any:
        """The spec that `data[key]` names, made of the data; None if it is wrong."""
        name, known = data.get(key), registry.names(key)
        if name not in known:
            what = (
                f"{name!r} is not a {key}{did_you_mean(str(name), known)}"
                if key in data
                else f"missing; it names the {key}"
            )
            return self.problem((*path, key), f"{what}; there are: {', '.join(known)}")
        return self.model(registry.spec_class(key, str(name)), data, path)

    def model(
        self, model: type[BaseModel], data: Any, path: KeyPath, skip: Sequence[str] = ()
    ) -> Any:
        try:
            return model.model_validate(data)
        except ValidationError as error:
            for detail in error.errors():
                if not (path == () and detail["loc"] and detail["loc"][0] in skip):
                    self.explain(model, detail, path)
            return None

    def explain(self, model: type[BaseModel], detail: ErrorDetails, path: KeyPath) -> None:
        """One pydantic error as one line."""
        where = (
            *path,
            *(
                p
                for p in detail["loc"]
                if not str(p).startswith(("function-", "tuple[", "constrained-", "dict["))
            ),
        )
        if where not in self.document.places and where[-1:] in (("range",), ("count",)):
            where = where[
                :-1
            ]  # a short form, such as `size: [56, 88]` for `size: {range: [56, 88]}`
        if detail["type"] == "extra_forbidden":
            self.problem(
                where,
                f"unknown key{did_you_mean(str(where[-1]), _fields(model, detail['loc'][:-1]))}",
            )
        elif detail["type"] == "missing":
            self.problem(where, "missing; this key must be given")
        elif detail["type"] == "value_error":
            own_key, _, rest = str(detail["ctx"]["error"]).partition(": ")
            named = own_key in _fields(model, detail["loc"])
            self.problem(
                (*where, own_key) if named else where,
                rest if named else str(detail["ctx"]["error"]),
            )
        else:
            self.problem(
                where, f"{detail['input']!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
            )

    def check_together(self, job: Job) -> None:
        """What no part can know alone: ids, room, and whether this pipeline can paint these layouts."""
        try:
            job.ids()
        except ValueError as error:
            self.problem(("layout", "objects"), str(error))
        try:
            job.layout.check_feasible()
        except InfeasibleLayoutError as error:
            self.problem(("layout", "objects"), str(error).removeprefix("objects: "))
        parts = {
            "pipeline": job.pipeline.check(job.layout, job.scene),
            "verify": job.verify.check(job.layout) if job.verify else [],
        }
        for name in job.scene.atmosphere() if not job.pipeline.follows_words else ():
            self.problem(
                ("scene", name),
                f"{job.pipeline.method} paints no {name}, and a prompt must be true; leave it out",
            )
        for section, problems in parts.items():
            for problem in problems:
                key, _, text = problem.partition(": ")
                self.problem((section, key), text)

    def problem(self, path: KeyPath, text: str) -> None:
        dotted = ".".join(map(str, path))
        line = (
            f"{self.document.place(path)}: {dotted}: {text}"
            if dotted
            else f"{self.document.place(path)}: {text}"
        )
        if line not in self.problems:
            self.problems.append(line)


def _fields(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that the (nested) model at `loc` knows."""
    for part in loc:
        annotation = model.model_fields[str(part)].annotation
        choices = (
            get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        )
        models = [a for a in choices if isinstance(a, type) and issubclass(a, BaseModel)]
        if len(models) != 1:
            return []
        model = models[0]
    return list(model.model_fields)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return a hint at the known word that is nearest to another one; "" if none is near."""
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
