"""Checks of files from elsewhere: nothing in a folder that comes over the network is trusted.

Everything here raises ``ValueError``, which names the culprit; the caller adds the file and the remedy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints, is_typeddict

import timm
from torch import Tensor, nn

from lowrank_vit.records.report import Report

# arguments of timm.create_model that fetch or open files, an old checkpoint's pickle among them
FETCHING = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable"}
)


def parse_json(text: str) -> Any:
    """Parse JSON as the standard has it, without NaN and infinities, nested no deeper than Python can follow."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_architecture(config: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless the name is one of timm's own, without a remote address, and no argument fetches."""
    name, arguments = config["architecture"], config["model_args"]
    if not isinstance(name, str) or ":" in name or not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"timm has no model {name!r}")
    if not isinstance(arguments, dict) or FETCHING & arguments.keys():
        raise ValueError(f"model_args {arguments!r} are not arguments of the architecture")


def check_layer(name: str, config: Mapping[str, Any], dense: nn.Module | nn.Parameter) -> None:
    """Raise ``ValueError`` for a layer larger than the ``dense`` one it replaces, or of another shape if that is linear."""
    parameters = [dense] if isinstance(dense, nn.Parameter) else list(dense.parameters())
    dimensions = [size for parameter in parameters for size in parameter.shape]
    if not isinstance(config, dict) or not dimensions:
        raise ValueError(f"{name!r} is not a layer")
    for key, value in config.items():
        if key == "bits":  # the quantised layer itself checks them
            continue
        limit = sum(parameter.numel() for parameter in parameters) if key == "correction" else max(dimensions)
        if any(not 0 <= number <= limit for number in _numbers(value)):  # a NaN is refused, too
            raise ValueError(f"{name!r} has the {key} {value!r}, but the dense layer allows at most {limit}")
    if isinstance(dense, nn.Linear):
        shape = (config.get("in_features"), config.get("out_features"))
        if shape != (dense.in_features, dense.out_features):
            raise ValueError(f"{name!r} is {shape}, the architecture's is {(dense.in_features, dense.out_features)}")


def _numbers(value: object) -> Iterator[float]:
    """Yield all numbers in a value of JSON."""
    if isinstance(value, int | float):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _numbers(part)


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` unless all floating-point values are finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")


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
