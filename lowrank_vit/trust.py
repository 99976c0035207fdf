"""What files from elsewhere may say: a folder or a setting that comes over the network is taken at no word.

Everything here raises ``ValueError``, whose text names the culprit; the reader adds the file and the remedy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import timm
from torch import Tensor, nn

# of timm.create_model: they fetch or open files, an old checkpoint's pickle among them
FETCHING = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable"}
)
COUNT, NUMBER, TEXT = (int,), (int, float), (str,)
OPTIONAL_COUNT, OPTIONAL_NUMBER, OPTIONAL_TEXT = (int, type(None)), (int, float, type(None)), (str, type(None))
SIZES = {"dense": COUNT, "compressed": COUNT}
LAYER = {
    "name": TEXT,
    "in_features": COUNT,
    "out_features": COUNT,
    "rank": OPTIONAL_COUNT,
    "z": (dict, type(None)),
    "params": COUNT,
    "relative_error": NUMBER,
    "relative_error_held_out": OPTIONAL_NUMBER,
}
REPORT = {
    "model": TEXT,
    "recipe": OPTIONAL_TEXT,
    "protocol": TEXT,
    "params": {**SIZES, "reduction": NUMBER},
    "layers": [LAYER],
    "seconds": {None: NUMBER},
}  # what the commands read of it
OVERFIT = {"relative_error": NUMBER, "relative_error_held_out": NUMBER, "ratio": NUMBER}
QUANTIZATION = {"bits": COUNT, "layers": COUNT, "relative_weight_error": NUMBER}


def parse_json(text: str) -> Any:
    """JSON as the standard has it, without NaN and infinities, nested no deeper than Python can follow."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_architecture(config: Mapping[str, Any]) -> None:
    """A name that timm itself knows, no address of a model elsewhere, and arguments that fetch nothing."""
    name, arguments = config["architecture"], config["model_args"]
    if not isinstance(name, str) or ":" in name or not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"timm has no model {name!r}")
    if not isinstance(arguments, dict) or FETCHING & arguments.keys():
        raise ValueError(f"model_args {arguments!r} are no arguments of an architecture")


def check_layer(name: str, config: Mapping[str, Any], dense: nn.Module) -> None:
    """A layer no larger than the ``dense`` one that it takes the place of, and of its shape where it is linear."""
    dimensions = [size for parameter in dense.parameters() for size in parameter.shape]
    if not isinstance(config, dict) or not dimensions:
        raise ValueError(f"{name!r} is no layer")
    for key, value in config.items():
        if key == "bits":  # of whatever layer; it refuses others than it can have
            continue
        limit = sum(p.numel() for p in dense.parameters()) if key == "correction" else max(dimensions)
        if any(not 0 <= number <= limit for number in _numbers(value)):  # a NaN is neither
            raise ValueError(f"{name!r} has the {key} {value!r}, and was a layer of at most {limit}")
    if isinstance(dense, nn.Linear):
        shape = (config.get("in_features"), config.get("out_features"))
        if shape != (dense.in_features, dense.out_features):
            raise ValueError(f"{name!r} is {shape}, the architecture's is {(dense.in_features, dense.out_features)}")


def _numbers(value: object) -> Iterator[float]:
    """All numbers in a value of JSON."""
    if isinstance(value, int | float):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _numbers(part)


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Numbers, all of them finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")


def check_report(report: Mapping[str, Any]) -> None:
    """All that the commands read of a report, in the types that they expect."""
    _check(report, REPORT, "the report")
    if report.get("macs") is not None:
        _check(report["macs"], SIZES, "macs")
    if report.get("quantization") is not None:
        _check(report["quantization"], QUANTIZATION, "quantization")
    if report.get("overfit") is not None:
        _check(report["overfit"], OVERFIT, "overfit")
    if report.get("left_dense") is not None:
        _check(report["left_dense"], {"layers": [TEXT], "params": COUNT}, "left_dense")
    for layer in report["layers"]:
        if layer["z"] is not None:
            _check(layer["z"], {"params": COUNT}, f"the z of {layer['name']!r}")


def _check(value: object, expected: Any, where: str) -> None:
    """``expected``: types, a mapping of them by key (None: by any key), or a list of what every entry is."""
    if isinstance(expected, tuple):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not isinstance(value, expected) or (isinstance(value, bool)) or (number and not math.isfinite(value)):
            raise ValueError(f"{where} is {value!r}")
    elif isinstance(expected, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} is no list")
        for index, entry in enumerate(value):
            _check(entry, expected[0], f"entry {index} of {where}")
    elif not isinstance(value, dict):
        raise ValueError(f"{where} is no object")
    else:
        for key in value if None in expected else expected:
            if key not in value:
                raise ValueError(f"{where} has no entry {key!r}")
            _check(value[key], expected.get(key, expected.get(None)), f"{key} of {where}")
