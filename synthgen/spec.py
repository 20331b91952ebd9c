"""The base class of recipes and jobs: how numbers are read and implementations are found."""

from importlib import import_module
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

NOT_VALIDATING = {"config", "default", "metadata", "serialization"}
"""Keys of a core schema that hold no schemas of values."""


def reject_non_numbers(value: Any) -> Any:
    """Return the value unless it is a boolean or NaN, which pydantic takes for a number.

    Raises:
        ValueError: the value is true, false or nan.
    """
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()}: input should be a number, not true or false")
    if isinstance(value, float) and value != value:
        raise ValueError("nan: input should be a number")
    return value


def _is_number(schema: dict[str, Any]) -> bool:
    """Return whether a core schema accepts numbers only, or a literal with a whole number."""
    if schema.get("type") == "literal":
        return any(type(value) is int for value in schema["expected"])
    return schema.get("type") in ("int", "float")


def _guard_numbers(schema: Any) -> Any:
    """Return a core schema that calls `reject_non_numbers` before it validates a number."""
    if isinstance(schema, list | tuple):
        return type(schema)([_guard_numbers(item) for item in schema])
    if not isinstance(schema, dict):
        return schema
    guarded: Any = {}
    for key, value in schema.items():
        guarded[key] = value if key in NOT_VALIDATING else _guard_numbers(value)
    if schema.get("type") == "union":
        choices = zip(schema["choices"], guarded["choices"], strict=True)
        guarded["choices"] = [_keep_label(original, choice) for original, choice in choices]
    if _is_number(schema):
        return core_schema.no_info_before_validator_function(reject_non_numbers, guarded)
    return guarded


def _keep_label(choice: Any, guarded: Any) -> Any:
    """Return a guarded choice of a union with a label like that of the original choice.

    Pydantic's errors locate a value by the labels of its choices. Without this they would name
    the guard.
    """
    if isinstance(choice, dict) and _is_number(choice):
        return guarded, f"constrained-{choice['type']}"
    return guarded


class SpecModel(BaseModel):
    """A mapping of a job file.

    A number such as 10.0 is accepted as a whole number; true, false and nan are not numbers.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = _guard_numbers(handler(source))
        return schema


def load_implementation(path: str) -> Any:
    """Import what a spec names, such as `synthgen.pipelines.mixture.painter:MixturePainter`.

    Specs are read without torch and without models. Their implementations are imported on first
    use.
    """
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted keys: {"a": {"b": 1}} is {"a.b": 1}."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            result.update(flatten(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = value
    return result
