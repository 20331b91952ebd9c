"""Jobs and recipes: YAML files and overrides in, one frozen, validated `Job` out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from os.path import expanduser, isfile
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails

from synthgen import registry
from synthgen.errors import InputError
from synthgen.layouts import InfeasibleLayoutError, SamplerSpec
from synthgen.pipelines import MethodSpec
from synthgen.pipelines.tiling.document import as_job, is_tiling_document
from synthgen.scene import SceneSpec
from synthgen.shards.categories import COCO_IDS, category_ids
from synthgen.shards.store import check_url, is_url
from synthgen.spec import SpecModel
from synthgen.train import TaskSpec
from synthgen.verify import VerifierSpec
from synthgen.voice import Spoken
from synthgen.voice.understand import understand
from synthgen.yamlfile import ConfigError, Document, KeyPath, parse_yaml, read_yaml

__all__ = ["ConfigError", "Job", "OutputSpec", "find_recipe", "load_job", "load_training", "recipe_names"]

RECIPES = {"layout": "layouts", "pipeline": "pipelines", "job": "jobs"}
SECTIONS = {"layout": "sampler", "pipeline": "method", "verify": "verifier"}  # each section's key that names its spec
COMMAND_LINE = "command line"


class OutputSpec(SpecModel):
    """Where the dataset goes and how its pictures are stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, description="output folder, or a URL: s3://, gs://, hdfs://")
    shared: bool = Field(False, description="all nodes of the cluster see the folder under this name")
    shard_size: int = Field(1000, ge=1, le=100_000, description="images a shard")
    image_format: Literal["jpg", "png", "webp"] = "jpg"
    quality: int = Field(95, ge=1, le=100, description="of jpg and webp")
    subsampling: Literal["4:4:4", "4:2:0"] = Field(
        "4:4:4", description="chroma of jpg; 4:2:0 is smaller, and blurs the colours of small objects (webp has 4:2:0 alone)"
    )

    @field_validator("path")
    @classmethod
    def without_keys(cls, value: str) -> str:
        if is_url(value):
            try:
                check_url(value)
            except InputError as error:
                raise ValueError(str(error)) from None
            return value
        return expanduser(value)  # a shell leaves the ~ of key=~/folder as it is


class Job(SpecModel):
    """What to make: one layout recipe, one pipeline recipe, how many, where to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1]
    name: str = Field(pattern=r"^[\w.-]+$")
    images: int = Field(ge=1, lt=10**9, description="how many images")
    seed: int = Field(0, ge=0, lt=2**63)
    layout: SerializeAsAny[SamplerSpec]
    scene: SceneSpec = SceneSpec()
    pipeline: SerializeAsAny[MethodSpec]
    output: OutputSpec
    workers: Annotated[int, Field(ge=0)] | tuple[int, int] | None = Field(
        None, description="how many, or [least, most]; 0: in this process; null: as many as the machine has room for"
    )
    batch_size: int = Field(4, ge=1, description="images painted together")
    chunk: int = Field(32, ge=1, description="windows that go through the network together; of large ones fewer")
    threads: int = Field(1, ge=1, description="CPU threads of a worker")
    gpus: float | None = Field(
        None, ge=0, le=1, description="GPUs a worker takes; null: 1 where the method uses one and there is one"
    )
    stall_timeout: float | None = Field(600, gt=0, description="seconds without progress until a worker is replaced; null: never")
    max_shard_attempts: int = Field(3, ge=1, description="failures until a shard is given up, for this run")
    max_attempts: int = Field(3, ge=1, description="times that an image is painted before on_reject says what happens")
    on_reject: Literal["keep", "fail"] = "keep"
    verify: SerializeAsAny[VerifierSpec] | None = Field(None, description="look at every box; null: do not")
    categories: dict[str, Annotated[int, Field(ge=1)]] = Field(default={}, description="ids of names that COCO lacks")
    spoken: Spoken | None = Field(None, description="what was said, where parts of the job were spoken: a record")
    _given: frozenset[str] = PrivateAttr(frozenset())

    @property
    def given(self) -> frozenset[str]:
        """Dotted keys that its owner set: not those that a shipped job or recipe, or a default, decides."""
        return self._given

    @field_validator("workers")
    @classmethod
    def least_first(cls, value: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        if isinstance(value, tuple) and not 1 <= value[0] <= value[1]:
            raise ValueError(f"[{value[0]}, {value[1]}] must be [least, most] with 1 <= least <= most")
        return value

    @field_validator("pipeline", mode="after")
    @classmethod
    def fit_pipeline(cls, value: MethodSpec, info: ValidationInfo) -> MethodSpec:
        """Settle what the layouts decide, such as the scale `native`, which is a number from here on."""
        layout = info.data.get("layout")
        return value if layout is None else value.fit_to_layouts(layout)

    @property
    def shards(self) -> int:
        return -(-self.images // self.output.shard_size)

    def shard_count(self, shard: int) -> int:
        """How many images shard number `shard` holds."""
        return min(self.output.shard_size, self.images - shard * self.output.shard_size)

    def ids(self) -> dict[str, int]:
        """Category ids of the names in the layout."""
        return category_ids((name for name, labelled in self.layout.names().items() if labelled), self.categories)

    def resolved(self) -> dict[str, Any]:
        """The job as plain data, every default written out."""
        return self.model_dump(mode="json")

    def fingerprint(self) -> dict[str, Any]:
        """All that the samples depend on, flat: dotted key to value. How many, where to and how fast are not in it."""
        data = self.resolved()
        output = {k: v for k, v in data["output"].items() if k not in ("path", "shared")}
        parts = {k: data[k] for k in ("seed", "layout", "scene", "pipeline", "categories", "verify")}
        return {**flat(parts), **flat({"output": output}), **self.files(), **self.revisions()}

    def revisions(self) -> dict[str, int]:
        """Return how often what a job like this generates or verifies has changed without a key, from 2 on.

        A dataset that was begun with another revision is not finished with this one.
        """
        found = {"pipeline.revision": self.pipeline.revision(self.layout)}
        if self.verify is not None:
            found["verify.revision"] = self.verify.revision
        return {key: number for key, number in found.items() if number > 1}

    def files(self) -> dict[str, Any]:
        """Hash the files that the samples depend on, flat: of the layout, scene, pipeline and verifier."""
        found = {
            "layout": self.layout.fingerprint(),
            "scene": self.scene.fingerprint(),
            "pipeline": {**self.pipeline.fingerprint(), **self.pipeline.scene_fingerprint(self.scene)},
            "verify": {} if self.verify is None else self.verify.fingerprint(),
        }
        return flat(found)


def load_job(name: str, overrides: Sequence[str] = (), said: Spoken | None = None) -> Job:
    """Read a job file (a path, or the name of a shipped job), its recipes and `key=value` overrides, and check all.

    Args:
        said: replaces keys of the file too; an override goes before it.

    Raises:
        ConfigError: with every problem at once, each as `file:line: key.path: what is wrong`.
        InputError: no words were said.
    """
    return job_of(read_yaml(find_recipe("job", name)), name, overrides, said)


def job_of(document: Document, name: str, overrides: Sequence[str] = (), said: Spoken | None = None) -> Job:
    """The same of a file that was read; `name` is what to call it."""
    if not isinstance(document.data, dict):
        raise ConfigError([f"{document.place(())}: a job is a mapping of keys to values"])
    if is_tiling_document(document.data):
        as_job(document, name)
    if "task" in document.data:
        raise ConfigError([f"{document.place(('task',))}: task: this is a training job; use: synthgen train {name}"])
    changes = [_parse_override(text) for text in overrides]
    _apply(document, [c for c in changes if len(c.path) == 1])
    unread = [section for section in SECTIONS if not _inline(document, section)]
    if said is not None:
        _apply(document, _spoken(document.data, said))
    _apply(document, [c for c in changes if len(c.path) > 1])
    return _Validation(document, unread).job()


def with_values(job: Job, values: dict[str, Any], place: str) -> Job:
    """The same job with other values of some keys, checked again.

    Args:
        values: dotted key to value.
        place: where they come from, for messages.

    Raises:
        ConfigError: it does not hold together with them.
    """
    document = Document(job.resolved(), {(): place})
    _apply(document, [_Override(tuple(key.split(".")), value, place) for key, value in values.items()])
    return _Validation(document).job()


def load_training(name: str, overrides: Sequence[str] = ()) -> TaskSpec:
    """Read a training job (a path, or the name of a shipped one) and `key=value` overrides, and check all.

    Raises:
        ConfigError: with every problem at once, each as `file:line: key.path: what is wrong`.
    """
    document = read_yaml(find_recipe("job", name))
    if not isinstance(document.data, dict) or "task" not in document.data:
        raise ConfigError([f"{document.place(())}: not a training job (it names no task); for a dataset: synthgen run {name}"])
    _apply(document, [_parse_override(text) for text in overrides])
    return _Validation(document).training()


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
    hint = _did_you_mean(name, recipe_names(kind))
    nor = ", and no such folder" if "/" in name else ""
    raise ConfigError([f"{name}: no such {kind}{nor}{hint}; there are: {', '.join(recipe_names(kind))} (looked in {looked})"])


def recipe_names(kind: str) -> list[str]:
    """Names of the recipes or jobs that can be found from here."""
    return sorted({p.stem for folder in _recipe_folders(kind) for p in folder.glob("*.yaml")})


def _recipe_folders(kind: str) -> list[Path]:
    package = Path(__file__).parent
    shipped = package / "recipes" if (package / "recipes").is_dir() else package.parent  # wheel, or checkout
    return [Path(RECIPES[kind]), shipped / RECIPES[kind]]


def _is_shipped(file: Path) -> bool:
    """Whether a file is a job or recipe of the package."""
    return any(file.resolve().is_relative_to(_recipe_folders(kind)[1].resolve()) for kind in RECIPES)


@dataclass(frozen=True)
class _Override:
    path: KeyPath
    value: Any
    place: str = COMMAND_LINE


def _parse_override(text: str) -> _Override:
    key, equals, value = text.partition("=")
    if not equals or not key or not all(key.split(".")):
        raise ConfigError([f"{COMMAND_LINE}: {text!r}: an override is key=value, such as images=1000 or pipeline.steps=12"])
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
                raise ConfigError([f"{change.place}: {'.'.join(map(str, change.path))}: {dotted} is not a mapping"])
        node[change.path[-1]] = change.value
        for path in [p for p in document.places if p[: len(change.path)] == change.path]:
            del document.places[path]
        document.places[change.path] = change.place


def _spoken(data: dict[str, Any], said: Spoken) -> list[_Override]:
    """What was said as overrides, with the categories that a job (its recipes inline) knows."""
    layout = data["layout"] if isinstance(data.get("layout"), dict) else {}
    own = [section for section in (data.get("categories"), layout.get("objects")) if isinstance(section, dict)]
    understood = understand(said, [*COCO_IDS, *(str(name) for section in own for name in section)])
    settings = {**understood.settings(), "spoken": understood.model_dump(mode="json")}
    if understood.objects and layout.get("total") is not None:
        settings["layout.total"] = None  # of shares, which counts replace
    return [_Override(tuple(key.split(".")), value, f"spoken ({said.text!r})") for key, value in settings.items()]


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


class _Validation:
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
        job._given = self.given(job)
        return job

    def given(self, job: Job) -> frozenset[str]:
        """`Job.given`."""
        return frozenset(key for key in flat(job.resolved()) if self.is_given(key.split(".")))

    def is_given(self, key: Sequence[str]) -> bool:
        """Whether a key stands in the document, or what it is a part of in a short form, and not in a shipped file."""
        node: Any = self.document.data
        path: KeyPath = ()
        for part in key:
            if not isinstance(node, dict):
                break
            if part not in node:
                return False
            node, path = node[part], (*path, part)
        file, _, line = self.document.place(path).rpartition(":")
        return not (line.isdecimal() and _is_shipped(Path(file)))

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
            what = f"{name!r} is not a {key}{_did_you_mean(str(name), known)}" if key in data else f"missing; it names the {key}"
            return self.problem((*path, key), f"{what}; there are: {', '.join(known)}")
        return self.model(registry.spec_class(key, str(name)), data, path)

    def model(self, model: type[BaseModel], data: Any, path: KeyPath, skip: Sequence[str] = ()) -> Any:
        try:
            return model.model_validate(data)
        except ValidationError as error:
            for detail in error.errors():
                if not (path == () and detail["loc"] and detail["loc"][0] in skip):
                    self.explain(model, detail, path)
            return None

    def explain(self, model: type[BaseModel], detail: ErrorDetails, path: KeyPath) -> None:
        """One pydantic error as one line."""
        where = (*path, *(p for p in detail["loc"] if not str(p).startswith(("function-", "tuple[", "constrained-", "dict["))))
        if where not in self.document.places and where[-1:] in (("range",), ("count",)):
            where = where[:-1]  # a short form, such as `size: [56, 88]` for `size: {range: [56, 88]}`
        if detail["type"] == "extra_forbidden":
            self.problem(where, f"unknown key{_did_you_mean(str(where[-1]), _fields(model, detail['loc'][:-1]))}")
        elif detail["type"] == "missing":
            self.problem(where, "missing; this key must be given")
        elif detail["type"] == "value_error":
            own_key, _, rest = str(detail["ctx"]["error"]).partition(": ")
            named = own_key in _fields(model, detail["loc"])
            self.problem((*where, own_key) if named else where, rest if named else str(detail["ctx"]["error"]))
        else:
            self.problem(where, f"{detail['input']!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}")

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
            self.problem(("scene", name), f"{job.pipeline.method} paints no {name}, and a prompt must be true; leave it out")
        for section, problems in parts.items():
            for problem in problems:
                key, _, text = problem.partition(": ")
                self.problem((section, key), text)

    def problem(self, path: KeyPath, text: str) -> None:
        dotted = ".".join(map(str, path))
        line = f"{self.document.place(path)}: {dotted}: {text}" if dotted else f"{self.document.place(path)}: {text}"
        if line not in self.problems:
            self.problems.append(line)


def _fields(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that the (nested) model at `loc` knows."""
    for part in loc:
        annotation = model.model_fields[str(part)].annotation
        choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        models = [a for a in choices if isinstance(a, type) and issubclass(a, BaseModel)]
        if len(models) != 1:
            return []
        model = models[0]
    return list(model.model_fields)


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: {"a": {"b": 1}} is {"a.b": 1}."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        result.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return result
