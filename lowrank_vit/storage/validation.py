"""Checks of a model from elsewhere: nothing in a folder that comes over the network is trusted.

Everything here raises ``ValueError``, which names the culprit; the caller adds the file and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import timm
from torch import Tensor, nn

# arguments of timm.create_model that fetch or open files, an old checkpoint's pickle among them
FETCHING = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable"}
)


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
