"""Which linear layers are compressed, and how one module is put in another's place."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from lowrank_vit.errors import InputError
from lowrank_vit.records import Site

POSITIONS = r"(rel_pos|cpb_mlp|meta_mlp)\."  # layers that make position biases: they see coordinates, no images
BLOCK_LINEARS = rf"(^|\.)blocks\.\d+\.(?!(.*\.)?{POSITIONS})"  # of every block: timm's ViT, DeiT, Swin and kin
EXPECTED_DENSE = rf"(^|\.)downsample\.|(^|\.|_){POSITIONS}"  # small, and on request at most


def find_sites(model: nn.Module, pattern: str = BLOCK_LINEARS) -> list[Site]:
    """The ``nn.Linear`` layers whose name contains a match of ``pattern``, in the model's order.

    The head and Swin's ``downsample.reduction`` are outside the default; ask for them by a pattern.
    Raises ``InputError`` where nothing matches, where the model has been compressed already, and for a layer that stands
    at two places, or shares its weight with another: it would be compressed at one of them only.
    """
    try:
        matcher = re.compile(pattern)
    except re.error as error:
        raise InputError(f"the site pattern {pattern!r} is no regular expression: {error}") from None
    linears = _linears(model)
    sites = [
        Site(name, module.in_features, module.out_features, module.bias is not None)
        for name, module in linears.items()
        if matcher.search(name)
    ]
    if not sites:
        wanted = "stands in a block (blocks.0, blocks.1, ...)" if pattern == BLOCK_LINEARS else f"matches {pattern!r}"
        names = ", ".join(list(linears)[:3])
        remedy = f"its linear layers are named like {names}; choose some by --sites" if names else "it has none at all"
        raise InputError(f"no linear layer of {type(model).__name__} {wanted}: {remedy}")
    _refuse_shared(model, {site.name for site in sites})
    return sites


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _refuse_shared(model: nn.Module, chosen: set[str]) -> None:
    """Raise ``InputError`` for a chosen layer whose weight another name has, too."""
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, first = name.rpartition(".")[0], owners.setdefault(id(parameter), name.rpartition(".")[0])
        if first != owner and chosen & {first, owner}:
            raise InputError(
                f"{first!r} and {owner!r} share a parameter, so that neither can be compressed alone: "
                "leave both out by --sites"
            )


def left_dense(model: nn.Module, compressed: Iterable[str]) -> dict[str, int]:
    """What is outside ``compressed`` (names of layers, or of modules around them) though it multiplies by a matrix.

    Names of linear layers, of convolutions that mix channels and of PyTorch's own attention, each with its parameters;
    the classifier and the patch embedding are meant to stay, so they are not among them.
    """
    classifier = getattr(model, "get_classifier", nn.Identity)()
    heads = classifier if isinstance(classifier, tuple) else (classifier,)
    meant = {id(module) for head in heads for module in head.modules()}
    inside = tuple(f"{name}." for name in compressed)
    found = {}
    for name, module in model.named_modules():
        if id(module) in meant or f"{name}.".startswith((*inside, "patch_embed.", *_first_layer(model))):
            continue
        mixing = isinstance(module, nn.modules.conv._ConvNd) and module.groups < module.in_channels
        if mixing or isinstance(module, nn.Linear | nn.MultiheadAttention):
            found[name] = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    return found


def _first_layer(model: nn.Module) -> list[str]:
    """The patch embedding by the name that timm has for it."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    return [f"{name}." for name in ([names] if isinstance(names, str) else names)]


def call_every_layer(model: nn.Module) -> nn.Module:
    """Set timm's attention of BEiT, EVA and Swin V2 to call its layer ``qkv``, in place; the outputs are the same.

    Its separate biases of queries and values are otherwise handed with the layer's weight to a function, so that the
    layer's input cannot be seen and no other module can take the layer's place.
    """
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):
            setattr(module, "qkv_bias_separate", True)  # noqa: B010  (no module of ours: a type checker knows nothing of it)
    return model


def get_linear(model: nn.Module, site: Site) -> nn.Linear:
    """The linear layer at a site."""
    module = model.get_submodule(site.name)
    assert isinstance(module, nn.Linear)
    return module


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at ``name``, in place."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
