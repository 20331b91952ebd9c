"""What a method, sampler, task, verifier, recipe or job is: read from its spec's docstrings and fields, and from its file."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from synthgen import registry
from synthgen.config.job import Job
from synthgen.config.loading import RECIPES, find_recipe, recipe_names
from synthgen.config.validation import did_you_mean
from synthgen.yamlfile import ConfigError, read_yaml

SPEC_KEYS = ("sampler", "method", "task", "verifier")


@dataclass(frozen=True)
class Parameter:
    """One key.

    Attributes:
        type: as a person writes it: "integer", "[number, number]", "box | gaussian".
        default: None also if `required`.
        range: such as "0 to 1" or "at least 1"; "" if any value of the type goes.
    """

    name: str
    type: str
    default: Any
    required: bool
    range: str
    description: str


@dataclass(frozen=True)
class Description:
    """What there is to know of a name.

    Attributes:
        kind: sampler, method, task, verifier, layout, pipeline or job.
        sources: papers and documents that the module names.
        checkpoints: what has to be loaded.
        values: of a recipe or job, what its file sets.
        file: of a recipe or job.
    """

    kind: str
    name: str
    text: str
    parameters: list[Parameter]
    sources: list[str]
    checkpoints: list[str]
    values: dict[str, Any] = field(default_factory=dict)
    file: str | None = None

    def lines(self) -> list[str]:
        """The same for a person."""
        width = max((len(p.name) for p in self.parameters), default=0)
        lines = [
            f"{self.name}: {self.kind}" + (f" ({self.file})" if self.file else ""),
            *self.text.splitlines(),
            "",
        ]
        lines += [
            f"{what}: {text}"
            for what, texts in (("source", self.sources), ("checkpoint", self.checkpoints))
            for text in texts
        ]
        lines += (
            [
                "keys that the file sets:",
                *(f"  {key}: {value!r}" for key, value in self.values.items()),
            ]
            if self.values
            else []
        )
        lines.append("keys, their types and defaults:")
        for p in self.parameters:
            default = "must be given" if p.required else f"default {shown(p.default)}"
            lines.append(
                f"  {p.name:<{width}}  {', '.join(filter(None, [p.type, p.range, default]))}"
            )
            lines += [f"  {'':<{width}}  {p.description}"] if p.description else []
        return lines


def describe(name: str) -> list[Description]:
    """All that goes by this name: a pipeline recipe may be called as its method is.

    Raises:
        ConfigError: nothing does; the message says what there is.
    """
    found = [of_spec(kind, name) for kind in SPEC_KEYS if name in registry.names(kind)]
    found += [of_recipe(kind, name) for kind in RECIPES if name in recipe_names(kind)]
    if found:
        return found
    known = sorted(
        {n for kind in SPEC_KEYS for n in registry.names(kind)}
        | {n for kind in RECIPES for n in recipe_names(kind)}
    )
    raise ConfigError(
        [
            f"{name}: nothing has this name{did_you_mean(name, known)}; `synthgen list` shows what there is"
        ]
    )


def of_spec(kind: str, name: str) -> Description:
    """A sampler, method, task or verifier."""
    spec = registry.spec_class(kind, name)
    model = spec.model_fields.get("model")
    checkpoints = (
        [f"pipeline.model, {model.default} unless given: {model.description}"]
        if model is not None
        else []
    )
    return Description(kind, name, document(spec), parameters(spec), sources(spec), checkpoints)


def of_recipe(kind: str, name: str) -> Description:
    """A layout or pipeline recipe, or a job, as its file has it."""
    path = find_recipe(kind, name)
    values = read_yaml(path).data
    values = values if isinstance(values, dict) else {}
    key = next((k for k in SPEC_KEYS if k in values), None)
    if key is None or values[key] not in registry.names(key):
        return Description(kind, name, document(Job), parameters(Job), [], [], values, str(path))
    spec = registry.spec_class(key, values[key])
    checkpoints = [str(values[k]) for k in ("model", "lora") if values.get(k)]
    if "model" in spec.model_fields and "model" not in values:
        checkpoints.append(str(spec.model_fields["model"].default))
    text = f"{key} {values[key]}: {document(spec)}"
    return Description(
        kind, name, text, parameters(spec), sources(spec), checkpoints, values, str(path)
    )


def document(thing: Any) -> str:
    """A docstring without its indentation."""
    lines = str(thing.__doc__ or "").strip().splitlines()
    return "\n".join(line.strip() for line in lines)


def sources(spec: type[BaseModel]) -> list[str]:
    """What the recipe's module, its implementation and its fields say of where it comes from."""
    folder = Path(str(sys.modules[spec.__module__].__file__))
    files = (
        [folder, *sorted(folder.parent.glob("pipeline.py"))]
        if folder.name == "__init__.py"
        else [folder]
    )
    texts = [
        t for f in files for t in re.findall(r'"""(.*?)"""', f.read_text(encoding="utf-8"), re.S)
    ]
    found = [
        " ".join(part.split())
        for t in texts
        for part in re.findall(r"Sources?: (.*?)(?:\n\s*\n|$)", t, re.S)
    ]
    text = "\n".join([*texts, *(f.description or "" for f in spec.model_fields.values())])
    papers = dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{4,5})", text))
    return found + [
        f"arXiv {paper}" for paper in papers if not any(paper in source for source in found)
    ]


class _Schema(GenerateJsonSchema):
    """Of types that JSON has no word for nothing is said."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {}


def parameters(spec: type[BaseModel]) -> list[Parameter]:
    """The keys of a spec, in order; those of mappings within as `outer.inner`."""
    schema = spec.model_json_schema(schema_generator=_Schema)
    return list(_walk(schema, schema.get("$defs", {}), ""))


def _walk(schema: dict[str, Any], known: dict[str, Any], prefix: str) -> list[Parameter]:
    result = []
    for name, value in schema.get("properties", {}).items():
        kind, inner = type_of(value, known), _inner(value, known)
        required = name in schema.get("required", ())
        text = value.get("description", "")
        result.append(
            Parameter(prefix + name, kind, value.get("default"), required, range_of(value), text)
        )
        if inner is not None and prefix.count(".") < 3:
            result += _walk(inner, known, f"{prefix}{name}.")
    return result


def _inner(value: dict[str, Any], known: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of a key that is one mapping with keys of its own."""
    choices = [_resolve(v, known) for v in value.get("anyOf", [value])]
    inner = [c for c in choices if c.get("properties")]
    return inner[0] if len(inner) == 1 else None


def _resolve(value: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    reference = value.get("$ref") or next(
        (v["$ref"] for v in value.get("allOf", []) if "$ref" in v), None
    )
    return known[reference.rpartition("/")[2]] if reference else value


def type_of(value: dict[str, Any], known: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    value = _resolve(value, known)
    for key in ("anyOf", "oneOf"):
        if key in value:
            return " | ".join(dict.fromkeys(type_of(v, known) for v in value[key]))
    if "enum" in value:
        return " | ".join(map(str, value["enum"]))
    if "const" in value:
        return str(value["const"])
    if "prefixItems" in value:
        return f"[{', '.join(type_of(v, known) for v in value['prefixItems'])}]"
    kinds: dict[str, Callable[[], str]] = {
        "array": lambda: f"list of {type_of(value.get('items', {}), known)}",
        "object": lambda: "mapping",
        "string": lambda: "text",
        "boolean": lambda: "true | false",
    }
    kind = str(value.get("type", "any"))
    return kinds[kind]() if kind in kinds else kind


def range_of(value: dict[str, Any]) -> str:
    """The values that a key may have, from its schema."""
    for part in (value, *value.get("anyOf", ()), *value.get("prefixItems", ())[:1]):
        least, above = part.get("minimum"), part.get("exclusiveMinimum")
        most, below = part.get("maximum"), part.get("exclusiveMaximum")
        if least is not None and most is not None:
            return f"{least:g} to {most:g}"
        bounds = [
            ("at least", least),
            ("more than", above),
            ("at most", most),
            ("less than", below),
        ]
        if any(bound is not None for _, bound in bounds):
            return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        if part is not value and (inner := range_of(part)):
            return inner
    return ""


def shown(value: Any) -> str:
    """A default as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "''" if value == "" else str(value)
