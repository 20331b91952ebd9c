"""What all recipes and jobs have in common: how numbers are read, and how a spec finds its implementation."""

from importlib import import_module
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

SKIPPED = {
    "config",
    "default",
    "metadata",
    "serialization",
}  # parts of a schema that validate nothing


def reject_non_numbers(value: Any) -> Any:
    """Return a value that may be a number.

    Raises:
        ValueError: it is true, false or nan.
    """
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()}: input should be a number, not true or false")
    if isinstance(value, float) and value != value:
        raise ValueError("nan: input should be a number")
    return value


def _is_number(schema: dict[str, Any]) -> bool:
    """Tell whether a core schema is that of numbers, or of certain numbers alone."""
    if schema.get("type") == "literal":
        return any(type(value) is int for value in schema["expected"])
    return schema.get("type") in ("int", "float")


def _guard(schema: Any) -> Any:
    """Put `reject_non_numbers` before every number of a core schema."""
    if isinstance(schema, list | tuple):
        return type(schema)(_guard(part) for part in schema)
    if not isinstance(schema, dict):
        return schema
    guarded: Any = {
        key: value if key in SKIPPED else _guard(value) for key, value in schema.items()
    }
    if (
        schema.get("type") == "union"
    ):  # the places of errors name the choices, and not by this guard
        pairs = zip(schema["choices"], guarded["choices"], strict=True)
        guarded["choices"] = [_labelled(old, new) for old, new in pairs]
    if _is_number(schema):
        return core_schema.no_info_before_validator_function(reject_non_numbers, guarded)
    return guarded


def _labelled(choice: Any, guarded: Any) -> Any:
    """Return a guarded choice of a union with a name like the one that it would have without."""
    is_guarded = isinstance(choice, dict) and _is_number(choice)
    return (guarded, f"constrained-{choice['type']}") if is_guarded else guarded


class SpecModel(BaseModel):
    """A mapping of a job file; whole decimals such as 10.0 are whole numbers, true and nan are none."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = _guard(handler(source))
        return schema


def load_implementation(path: str) -> Any:
    """Import what a spec names, such as `synthgen.pipelines.mixture.painter:MixturePainter`.

    Specs are read where neither torch nor a model is needed; what they describe is imported when it is used.
    """
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: {"a": {"b": 1}} is {"a.b": 1}."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        result.update(
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return result
