"""JSON as every program reads it: without NaN and infinities, which Python's own module writes and reads."""

import json
import math
from typing import Any, NoReturn


def to_json(value: Any, indent: int | None = None) -> str:
    """Return JSON text; a number that JSON has not is left out (`without_nan`)."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(without_nan(value), indent=indent, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """Return what JSON text says.

    Raises:
        ValueError: it is no JSON, or has a NaN or an infinity.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, parse_constant=_refuse)


def without_nan(value: Any) -> Any:
    """Return a copy without NaN and infinities: a key that has one is left out, and an item of a list becomes None."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items() if not _is_beyond_json(item)}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if _is_beyond_json(value) else value


def _is_beyond_json(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
