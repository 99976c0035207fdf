"""The parts of a block as a family describes them: linear layers and timm's MLPs, and the error for any other part."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lowrank_vit.architectures.linears import MERGE, beyond_linear, dense_linear
from lowrank_vit.modules.fold import MlpWeights
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.records.sites import MlpSite, PoolSite, Site
from lowrank_vit.runtime.errors import InputError

NORMS = ("q_norm", "k_norm")
NORMALISED, APART = "normalised", "made by layers of their own"  # what queries and keys are that stay dense
ADVICE = "choose a recipe for single layers (`list recipes`)"


class UnknownWholeError(InputError):
    """Report a module or a model that is not known as a whole; ``reason`` is the message without the remedy."""

    def __init__(self, reason: str, remedy: str = ADVICE) -> None:
        super().__init__(f"{reason}: {remedy}")
        self.reason = reason


def described_linear(name: str, layer: nn.Module, heads: int = 0) -> Site:
    """Describe a linear layer of a module. Raises ``InputError`` for a layer of another kind."""
    if not isinstance(layer, nn.Linear):
        raise UnknownWholeError(f"{name!r} is a {type(layer).__name__}, no linear layer")
    if beyond := beyond_linear(layer):
        raise UnknownWholeError(f"{name!r} is {beyond}, no plain linear layer", MERGE)
    return Site(name, layer.in_features, layer.out_features, layer.bias is not None, heads)


def refuse_extras(name: str, module: nn.Module, extras: dict[str, str]) -> None:
    """Raise ``InputError`` if a module has one of the ``extras``: attributes beyond the plain kind, and their meaning."""
    for attribute, meaning in extras.items():
        extra = getattr(module, attribute, None)
        if extra is not None and not isinstance(extra, nn.Identity):
            raise UnknownWholeError(f"{name!r} {meaning} ({attribute}), which its smaller form would not")


def described_pool(name: str, module: nn.Module) -> PoolSite | None:
    """Describe timm's attention pooling; None for another module. Raises ``InputError`` for one without an output layer."""
    from timm.layers import AttentionPoolLatent

    if type(module) is not AttentionPoolLatent:
        return None
    kv = replace(described_linear(f"{name}.kv", module.kv, module.num_heads), parts=2)
    proj = described_linear(f"{name}.proj", module.proj)
    further: dict[str, Any] = {"latents": module.latent_len, "beside": (f"{name}.q",)}
    if not isinstance(module.q, nn.Linear):
        further |= {"dense_logits": APART, "beside": ()}
    if not all(isinstance(getattr(module, norm), nn.Identity) for norm in NORMS):
        further["dense_logits"] = NORMALISED
    return PoolSite(name, kv, proj, module.head_dim, latent_width=module.latent_dim, **further)


def mlp_inputs(module: nn.Module) -> tuple[str, ...]:
    """Name the layers of an MLP of timm's that make the hidden units, gates first; none for another module.

    A subclass may compute something else.
    """
    from timm.layers import GluMlp, Mlp, SwiGLU

    known: dict[type[nn.Module], tuple[str, ...]] = {Mlp: ("fc1",), GluMlp: ("fc1",), SwiGLU: ("fc1_g", "fc1_x")}
    return known.get(type(module), ())


def described_mlp(name: str, module: Any) -> MlpSite | None:
    """Describe an MLP of timm's, with gates or without; None for another module.

    Raises ``InputError`` for one whose hidden units do not go one by one: normalised together, or made by a convolution.
    """
    layers = mlp_inputs(module)
    if not layers:
        return None
    refuse_extras(name, module, {"norm": "normalises its hidden units"})
    if any(parameter.numel() > 1 for parameter in module.act.parameters()):
        raise UnknownWholeError(f"{name!r} has an activation function with weights of its own")
    *inputs, output = (described_linear(f"{name}.{layer}", module.get_submodule(layer)) for layer in (*layers, "fc2"))
    return MlpSite(name, tuple(inputs), output)


def described_mlp_weights(model: nn.Module, site: MlpSite) -> MlpWeights:
    """Return the weights of an MLP of timm's, gates first."""
    module: Any = model.get_submodule(site.name)
    weights, biases = zip(*(dense_linear(model, layer) for layer in site.inputs), strict=True)
    weight, bias = torch.cat(weights, -1), torch.cat(biases, -1)
    if getattr(module, "gate_last", False):
        weight, bias = (torch.cat(each.chunk(2, -1)[::-1], -1) for each in (weight, bias))
    return MlpWeights(weight, bias, module.act, get_linear(model, site.fc2).weight.dtype)
