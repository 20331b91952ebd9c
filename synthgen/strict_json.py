"""Strict JSON, without the NaN and infinities that Python's own module reads and writes."""

import json
import math
from typing import Any, NoReturn


def to_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON text, without the numbers that JSON does not have (`remove_nan`)."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(remove_nan(value), indent=indent, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is not JSON, or contains NaN or an infinity.
        RecursionError: the text is nested too deeply.
    """
    return json.loads(text, parse_constant=_reject_constant)


def remove_nan(value: Any) -> Any:
    """Return a copy without NaN and infinities.

    A key with such a value is left out; such an item of a list becomes None.
    """
    if isinstance(value, dict):
        return {key: remove_nan(item) for key, item in value.items() if not _is_not_finite(item)}
    if isinstance(value, list | tuple):
        return [remove_nan(item) for item in value]
    return None if _is_not_finite(value) else value


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")
