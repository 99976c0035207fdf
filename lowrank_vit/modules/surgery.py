"""Find a module, and replace it by another."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from lowrank_vit.records.sites import Site


def output_linear(layer: nn.Module) -> nn.Linear:
    """Return the linear layer that makes a layer's output: of a smaller layer, the one called ``up``."""
    linear = output_layer(layer)
    assert isinstance(linear, nn.Linear)
    return linear


def output_layer(layer: nn.Module) -> nn.Module:
    """Return the layer that makes a layer's output: of a smaller layer the one called ``up``, otherwise itself."""
    return getattr(layer, "up", layer)


def get_linear(model: nn.Module, site: Site) -> nn.Linear:
    """Return the linear layer at a site, or the one that makes its output."""
    return output_linear(model.get_submodule(site.name))


def part(model: nn.Module, name: str) -> Any:
    """Return the module, or the parameter, of this name. Raises ``AttributeError`` where there is none."""
    parent, _, child = name.rpartition(".")
    return getattr(model.get_submodule(parent), child)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at ``name``, in place of a module or a parameter."""
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    if isinstance(getattr(owner, child, None), nn.Parameter):
        delattr(owner, child)  # torch lets nothing but tensors take a parameter's place
    setattr(owner, child, module)


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Register hooks within the block."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have a model in evaluation mode within the block; each module then has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def exchanged(model: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    """Replace a module by another within the block."""
    original = model.get_submodule(name)
    replace_module(model, name, module)
    try:
        yield
    finally:
        replace_module(model, name, original)
