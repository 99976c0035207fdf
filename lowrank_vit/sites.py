"""Which linear layers are compressed, and how one module is put in another's place."""

from __future__ import annotations

import re

from torch import nn

from lowrank_vit.errors import InputError
from lowrank_vit.records import Site

BLOCK_LINEARS = r"(^|\.)blocks\.\d+\."  # every linear of every block: timm's ViT, DeiT, Swin and kin


def find_sites(model: nn.Module, pattern: str = BLOCK_LINEARS) -> list[Site]:
    """The ``nn.Linear`` layers whose name contains a match of ``pattern``, in the model's order.

    The head and Swin's ``downsample.reduction`` are outside the default; ask for them by a pattern.
    Raises ``InputError`` where nothing matches, or where the model has been compressed already.
    """
    try:
        matcher = re.compile(pattern)
    except re.error as error:
        raise InputError(f"the site pattern {pattern!r} is no regular expression: {error}") from None
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    sites = [
        Site(name, module.in_features, module.out_features, module.bias is not None)
        for name, module in linears.items()
        if matcher.search(name)
    ]
    if not sites:
        raise InputError(
            f"no linear layer of {type(model).__name__} matches the site pattern {pattern!r}: "
            f"its linear layers are named like {', '.join(list(linears)[:3]) or 'nothing'}"
        )
    return sites


def get_linear(model: nn.Module, site: Site) -> nn.Linear:
    """The linear layer at a site."""
    module = model.get_submodule(site.name)
    assert isinstance(module, nn.Linear)
    return module


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at ``name``, in place."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
