"""Find a module, and replace it by another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lowrank_vit.records.layers import Site


def output_linear(layer: nn.Module) -> nn.Linear:
    """Return the linear layer that makes a layer's output: of a smaller layer, the one called ``up``."""
    linear = getattr(layer, "up", layer)
    assert isinstance(linear, nn.Linear)
    return linear


def get_linear(model: nn.Module, site: Site) -> nn.Linear:
    """Return the linear layer at a site, or the one that makes its output."""
    return output_linear(model.get_submodule(site.name))


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at ``name``, in place."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


@contextmanager
def exchanged(model: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    """Replace a module by another within the block."""
    original = model.get_submodule(name)
    replace_module(model, name, module)
    try:
        yield
    finally:
        replace_module(model, name, original)
