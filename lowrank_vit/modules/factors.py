"""Operations on all pairs of factors of a model at once, which leave its outputs the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lowrank_vit.modules.pivoted_linear import PivotedLinear, as_linear
from lowrank_vit.modules.surgery import replace_module


def pivot(model: nn.Module) -> dict[str, int]:
    """Pivot the factors of all compressed modules in place; return how many parameters each has lost by it, by name."""
    saved = {}
    for name, module in list(model.named_modules()):
        own = getattr(module, "pivot", None)
        if own is not None:
            before = _count(module)
            own()
            saved[name] = before - _count(module)
    return saved


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def expand(model: nn.Module) -> list[str]:
    """Give all pivoted layers plain weights, in place; return the names of the modules that they belong to."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, PivotedLinear)}
    for name, layer in layers.items():
        replace_module(model, name, as_linear(layer))
    return [name.rpartition(".")[0] for name in layers]


@contextmanager
def expanded(model: nn.Module) -> Iterator[None]:
    """Give pivoted layers plain weights within the block, so that training moves all of them, and pivot them after it."""
    owners = expand(model)
    try:
        yield
    finally:
        for name in owners:
            owner: Any = model.get_submodule(name)
            owner.pivot()
