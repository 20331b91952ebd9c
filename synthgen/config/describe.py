"""Descriptions of methods, samplers, tasks, verifiers, recipes and jobs.

They are read from the docstrings and fields of their specs, and from the files of recipes and jobs.
"""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from synthgen import registry
from synthgen.config.job import Job
from synthgen.config.loading import RECIPES, find_recipe, list_recipe_names
from synthgen.config.validation import suggest_name
from synthgen.yamlfile import ConfigError, read_yaml

SPEC_KEYS = ("sampler", "method", "task", "verifier")
MAX_DEPTH = 3
"""How many levels of mappings inside mappings are listed below the first one."""
TYPE_WORDS = {"object": "mapping", "string": "text", "boolean": "true | false"}


@dataclass(frozen=True)
class Parameter:
    """A key of a job or recipe.

    Attributes:
        type: the type as text: "integer", "[number, number]", "box | gaussian".
        default: None also if the key is `required`.
        range: such as "0 to 1" or "at least 1"; "" if every value of the type is allowed.
    """

    name: str
    type: str
    default: Any
    required: bool
    range: str
    description: str


@dataclass(frozen=True)
class Description:
    """The description of a name.

    Attributes:
        kind: sampler, method, task, verifier, layout, pipeline or job.
        sources: papers and documents that the module names.
        checkpoints: the checkpoints that have to be loaded.
        values: the keys that the file of a recipe or job sets.
        file: the file of a recipe or job.
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
        """Return the description as lines of text."""
        location = f" ({self.file})" if self.file else ""
        lines = [f"{self.name}: {self.kind}{location}", *self.text.splitlines(), ""]
        lines += [f"source: {source}" for source in self.sources]
        lines += [f"checkpoint: {checkpoint}" for checkpoint in self.checkpoints]
        if self.values:
            lines.append("keys that the file sets:")
            lines += [f"  {key}: {value!r}" for key, value in self.values.items()]
        lines.append("keys, their types and defaults:")
        width = max((len(parameter.name) for parameter in self.parameters), default=0)
        for parameter in self.parameters:
            facts = [parameter.type]
            if parameter.range:
                facts.append(parameter.range)
            if parameter.required:
                facts.append("must be given")
            else:
                facts.append(f"default {format_value(parameter.default)}")
            lines.append(f"  {parameter.name:<{width}}  {', '.join(facts)}")
            if parameter.description:
                lines.append(f"  {'':<{width}}  {parameter.description}")
        return lines


def describe(name: str) -> list[Description]:
    """Return the descriptions of everything with this name.

    There can be several: a pipeline recipe may have the name of its method.

    Raises:
        ConfigError: nothing has this name.
    """
    descriptions = []
    known = set()
    for kind in SPEC_KEYS:
        names = registry.list_names(kind)
        known.update(names)
        if name in names:
            descriptions.append(describe_spec(kind, name))
    for kind in RECIPES:
        names = list_recipe_names(kind)
        known.update(names)
        if name in names:
            descriptions.append(describe_recipe(kind, name))
    if not descriptions:
        hint = suggest_name(name, sorted(known))
        raise ConfigError([f"{name}: nothing has this name{hint}; `synthgen list` shows all names"])
    return descriptions


def describe_spec(kind: str, name: str) -> Description:
    """Return the description of a sampler, method, task or verifier."""
    spec = registry.load_spec_class(kind, name)
    model = spec.model_fields.get("model")
    checkpoints = []
    if model is not None:
        checkpoints.append(f"pipeline.model, default {model.default}: {model.description}")
    return Description(
        kind, name, read_docstring(spec), list_parameters(spec), list_sources(spec), checkpoints
    )


def describe_recipe(kind: str, name: str) -> Description:
    """Return the description of a layout or pipeline recipe, or of a job, from its file."""
    path = find_recipe(kind, name)
    values = read_yaml(path).data
    if not isinstance(values, dict):
        values = {}
    present = [key for key in SPEC_KEYS if key in values]
    if not present or values[present[0]] not in registry.list_names(present[0]):
        text = read_docstring(Job)
        return Description(kind, name, text, list_parameters(Job), [], [], values, str(path))
    key = present[0]
    spec = registry.load_spec_class(key, values[key])
    checkpoints = [str(values[k]) for k in ("model", "lora") if values.get(k)]
    if "model" in spec.model_fields and "model" not in values:
        checkpoints.append(str(spec.model_fields["model"].default))
    return Description(
        kind,
        name,
        f"{key} {values[key]}: {read_docstring(spec)}",
        list_parameters(spec),
        list_sources(spec),
        checkpoints,
        values,
        str(path),
    )


def read_docstring(thing: Any) -> str:
    """Return a docstring without its indentation."""
    lines = str(thing.__doc__ or "").strip().splitlines()
    return "\n".join(line.strip() for line in lines)


def list_sources(spec: type[BaseModel]) -> list[str]:
    """Return the sources that the spec's module, its implementation and its fields name."""
    file = Path(str(sys.modules[spec.__module__].__file__))
    files = [file]
    implementation = file.with_name("pipeline.py")
    if file.name == "__init__.py" and implementation.exists():
        files.append(implementation)
    docstrings: list[str] = []
    for path in files:
        docstrings += re.findall(r'"""(.*?)"""', path.read_text(encoding="utf-8"), re.S)
    sources = []
    for docstring in docstrings:
        for source in re.findall(r"Sources?: (.*?)(?:\n\s*\n|$)", docstring, re.S):
            sources.append(" ".join(source.split()))
    descriptions = [field.description or "" for field in spec.model_fields.values()]
    text = "\n".join([*docstrings, *descriptions])
    papers = []
    for paper in dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{4,5})", text)):
        if not any(paper in source for source in sources):
            papers.append(f"arXiv {paper}")
    return sources + papers


class _Schema(GenerateJsonSchema):
    """A generator of JSON schemas that leaves out types which JSON does not have."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {}


def list_parameters(spec: type[BaseModel]) -> list[Parameter]:
    """Return the keys of a spec in order; keys of mappings inside it are named `outer.inner`."""
    schema = spec.model_json_schema(schema_generator=_Schema)
    return _list_properties(schema, schema.get("$defs", {}), "")


def _list_properties(
    schema: dict[str, Any], definitions: dict[str, Any], prefix: str
) -> list[Parameter]:
    parameters = []
    for name, value in schema.get("properties", {}).items():
        parameter = Parameter(
            name=prefix + name,
            type=describe_type(value, definitions),
            default=value.get("default"),
            required=name in schema.get("required", ()),
            range=describe_range(value),
            description=value.get("description", ""),
        )
        parameters.append(parameter)
        mapping = _find_mapping(value, definitions)
        if mapping is not None and prefix.count(".") < MAX_DEPTH:
            parameters += _list_properties(mapping, definitions, f"{prefix}{name}.")
    return parameters


def _find_mapping(value: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of the mapping with known keys that a key takes, if there is just one."""
    mappings = []
    for choice in value.get("anyOf", [value]):
        resolved = _resolve_reference(choice, definitions)
        if resolved.get("properties"):
            mappings.append(resolved)
    return mappings[0] if len(mappings) == 1 else None


def _resolve_reference(value: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    for schema in (value, *value.get("allOf", [])):
        if "$ref" in schema:
            return definitions[schema["$ref"].rpartition("/")[2]]
    return value


def describe_type(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return the type of a JSON schema as text."""
    value = _resolve_reference(value, definitions)
    for key in ("anyOf", "oneOf"):
        if key in value:
            choices = [describe_type(choice, definitions) for choice in value[key]]
            return " | ".join(dict.fromkeys(choices))
    if "enum" in value:
        return " | ".join(map(str, value["enum"]))
    if "const" in value:
        return str(value["const"])
    if "prefixItems" in value:
        items = [describe_type(item, definitions) for item in value["prefixItems"]]
        return f"[{', '.join(items)}]"
    kind = str(value.get("type", "any"))
    if kind == "array":
        return f"list of {describe_type(value.get('items', {}), definitions)}"
    return TYPE_WORDS.get(kind, kind)


def describe_range(value: dict[str, Any]) -> str:
    """Return the allowed range of a JSON schema as text, or "" if there is none."""
    text = _describe_bounds(value)
    if text:
        return text
    for choice in (*value.get("anyOf", ()), *value.get("prefixItems", ())[:1]):
        text = describe_range(choice)
        if text:
            return text
    return ""


def _describe_bounds(value: dict[str, Any]) -> str:
    least = value.get("minimum")
    most = value.get("maximum")
    if least is not None and most is not None:
        return f"{least:g} to {most:g}"
    bounds = {
        "at least": least,
        "more than": value.get("exclusiveMinimum"),
        "at most": most,
        "less than": value.get("exclusiveMaximum"),
    }
    return " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)


def format_value(value: Any) -> str:
    """Return a value as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "''" if value == "" else str(value)
