"""The modules that replace compressed layers, how they are counted, and how one module replaces another.

A module that replaces another is registered with its kind, under which ``config.json`` describes it.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Self

from torch import nn

from lowrank_vit.runtime.registry import Registry

UNNAMED = ("linear", "quantized")  # kinds from the first format of the folders, whose entries do not name them

PLAIN_TYPES: Mapping[Any, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}


class Replacement(nn.Module):
    """Replace a module; ``config``: the plain values that describe the shape, by default all arguments of its class."""

    config: dict[str, Any]

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: Any) -> Self:
        """Make a module of this shape for a strict state dict; ``dense``: the module, or the parameter, that it replaces.

        Raises ``ValueError`` for values that its shape does not have.
        """
        if foreign := config.keys() - inspect.signature(cls).parameters.keys():
            raise ValueError(f"{cls.__name__} has no {', '.join(sorted(foreign))}")
        return cls(**config)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.config.items())


REPLACEMENTS: Registry[Any] = Registry("kind of module", __name__)


def replacement_entries(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Describe each replaced module of a model, by its name; a compressed one comes before the factors inside it."""
    entries = {}
    for name, module in model.named_modules():
        kind = REPLACEMENTS.name_of(module)
        if kind is not None:
            config = dict(module.config)
            entries[name] = config if kind in UNNAMED else {"kind": kind, **config}
    return entries


def empty_replacement(entry: Mapping[str, Any], dense: nn.Module | nn.Parameter) -> nn.Module:
    """Make the module that an entry describes. Raises ``ValueError`` for an unknown kind, and for values of other types."""
    config = dict(entry)
    kind = config.pop("kind", "quantized" if "bits" in config else "linear")
    if kind not in REPLACEMENTS.names():
        raise ValueError(f"a layer of unknown kind {kind!r}")
    chosen = REPLACEMENTS.get(kind)
    _check_types(chosen, config)
    return chosen.empty(config, dense)


def _check_types(kind: type, config: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for a value whose plain type is not that of the module's own argument."""
    for name, parameter in inspect.signature(kind, eval_str=True).parameters.items():
        types = PLAIN_TYPES.get(parameter.annotation)
        value = config.get(name, parameter.default)
        if types is None or value is parameter.default:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"{name} is {value!r}")
