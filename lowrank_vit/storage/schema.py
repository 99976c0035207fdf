"""Checks of JSON from elsewhere, as ``validation`` checks models: plain values, and a report against its types.

Everything here raises ``ValueError``, which names the culprit; the caller adds the file and the remedy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints, is_typeddict

from lowrank_vit.records.report import Report


def parse_json(text: str) -> Any:
    """Parse JSON as the standard has it, without NaN and infinities, nested no deeper than Python can follow."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def checked_report(value: Mapping[str, Any]) -> Report:
    """Return the report if its entries have the types of the schema. Raises ``ValueError`` that names one that does not."""
    _check(value, Report, "the report")
    return cast(Report, value)


def _check(value: object, expected: Any, where: str) -> None:
    """Check a value of JSON against a type: a ``TypedDict``, a list or a dictionary of something, a union, a plain type."""
    origin, arguments = get_origin(expected), get_args(expected)
    if is_typeddict(expected):
        _check_entries(value, expected, where)
    elif origin is UnionType:
        if value is not None or NoneType not in arguments:
            _check(value, next(each for each in arguments if each is not NoneType), where)
    elif origin is list:
        if not isinstance(value, list):
            raise ValueError(f"{where} is not a list")
        for index, entry in enumerate(value):
            _check(entry, arguments[0], f"entry {index} of {where}")
    elif origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is not an object")
        for key, entry in value.items():
            _check(entry, arguments[1], f"{key} of {where}")
    elif expected is not Any:
        _check_plain(value, expected, where)


def _check_entries(value: object, expected: Any, where: str) -> None:
    """Check an object against a ``TypedDict``; unknown entries are allowed."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    for key, hint in get_type_hints(expected).items():
        if key in value:
            _check(value[key], hint, f"{key} of {where}")
        elif key in expected.__required_keys__:
            raise ValueError(f"{where} has no entry {key!r}")


def _check_plain(value: object, expected: type, where: str) -> None:
    """Check a text or a finite number; a whole number will do where any number does."""
    kinds = (int, float) if expected is float else (expected,)
    infinite = isinstance(value, int | float) and not math.isfinite(value)
    if not isinstance(value, kinds) or isinstance(value, bool) or infinite:
        raise ValueError(f"{where} is {value!r}")
