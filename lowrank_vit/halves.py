"""The halves of a block, attention and MLP, as whole sites: find them, and fold what is kept into smaller modules."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import torch
from timm.layers import Attention, Mlp
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from lowrank_vit.attention import LowRankAttention
from lowrank_vit.errors import InputError
from lowrank_vit.layers import SmallMlp
from lowrank_vit.parts import AttentionSite, HalfSite, MlpSite
from lowrank_vit.records import Site, as_float64
from lowrank_vit.sites import BLOCK_LINEARS, find_sites, get_linear

ATTENTION_TYPES, MLP_TYPES = (Attention, WindowAttention), (Mlp,)  # no subclass: it may compute something else
ADVICE = "choose a recipe for single layers, as 'loss_aware'"


def _linear(name: str, layer: nn.Module, heads: int = 0) -> Site:
    if not isinstance(layer, nn.Linear):
        raise InputError(f"{name!r} is a {type(layer).__name__}, no linear layer: {ADVICE}")
    return Site(name, layer.in_features, layer.out_features, layer.bias is not None, heads)


def _refuse_extras(name: str, module: nn.Module, extras: Mapping[str, str]) -> None:
    """Raise ``InputError`` that names the half and what it has beyond the plain kind."""
    for attribute, meaning in extras.items():
        extra = getattr(module, attribute, None)
        if extra is not None and not isinstance(extra, nn.Identity):
            raise InputError(f"{name!r} {meaning} ({attribute}), which its smaller form would not: {ADVICE}")


def _attention_site(name: str, module: Attention | WindowAttention) -> AttentionSite:
    norms = {"q_norm": "normalises its queries", "k_norm": "normalises its keys", "norm": "normalises its values"}
    _refuse_extras(name, module, {**norms, "gate": "gates its values"})
    qkv, proj = _linear(f"{name}.qkv", module.qkv, module.num_heads), _linear(f"{name}.proj", module.proj)
    if qkv.out_features != 3 * proj.in_features or proj.out_features != qkv.in_features:
        raise InputError(f"{name!r} has queries, keys, values or outputs of different widths: {ADVICE}")
    height, breadth = module.window_size if isinstance(module, WindowAttention) else (0, 0)
    window = (height, breadth) if height else None
    return AttentionSite(name, qkv, proj, proj.in_features // module.num_heads, window)


def _mlp_site(name: str, module: Mlp) -> MlpSite:
    _refuse_extras(name, module, {"norm": "normalises its hidden units"})
    return MlpSite(name, _linear(f"{name}.fc1", module.fc1), _linear(f"{name}.fc2", module.fc2))


def find_halves(model: nn.Module) -> list[HalfSite]:
    """Every attention module and MLP of every block, in the model's order.

    Raises ``InputError`` for one that has more to it than its smaller form could have (normalised queries, gates), and
    where a block has a linear layer that belongs to neither: half a block would stay behind.
    """
    sites, halves = find_sites(model, BLOCK_LINEARS), list[HalfSite]()
    for name, module in model.named_modules():
        if not re.search(BLOCK_LINEARS, name):
            continue
        if isinstance(module, Attention | WindowAttention) and type(module) in ATTENTION_TYPES:
            halves.append(_attention_site(name, module))
        elif isinstance(module, Mlp) and type(module) in MLP_TYPES:
            halves.append(_mlp_site(name, module))
    covered = {linear for half in halves for linear in _linears(half)}
    for site in sites:
        if site.name not in covered:
            owner = type(model.get_submodule(site.name.rpartition(".")[0]))
            raise InputError(
                f"{site.name!r} belongs to {owner.__module__}.{owner.__name__}, which recipe 'best' does not know "
                f"(it takes timm's plain ViT and Swin blocks): {ADVICE}"
            )
    return halves


def _linears(half: HalfSite) -> tuple[str, str]:
    """The names of both linear layers of a half."""
    pair = (half.qkv, half.proj) if isinstance(half, AttentionSite) else (half.fc1, half.fc2)
    return pair[0].name, pair[1].name


def _bias(linear: nn.Linear) -> Tensor:
    """The bias in float64, zeros where there is none."""
    return as_float64(linear.weight).new_zeros(linear.out_features) if linear.bias is None else as_float64(linear.bias)


def _write(layer: nn.Linear, weight: Tensor, bias: Tensor | None = None) -> None:
    """Put a weight, (n, d), and a bias, (d,), into a layer."""
    layer.weight.data = weight.T.contiguous()
    if bias is not None:
        layer.bias.data = bias.clone()


def dense_linear(model: nn.Module, site: Site) -> tuple[Tensor, Tensor]:
    """Weight (n, d) and bias (d,) of a linear layer, float64."""
    layer = get_linear(model, site)
    return as_float64(layer.weight).T, _bias(layer)


def fold_attention(
    model: nn.Module,
    site: AttentionSite,
    logits: tuple[Tensor, Tensor],
    kept_logits: Tensor,
    value: Tensor,
    kept_values: Tensor,
    output: Tensor,
    bias: Tensor,
) -> LowRankAttention:
    """The smaller module: queries and keys in the transforms' kept columns, values likewise, the refitted output.

    ``logits`` (queries and keys) and ``value``: (h, s, s) each, a head's dimensions to its directions; ``kept_*``:
    indices into the h * s directions, ascending, (kept,); ``output``: (kept, n). ``bias``, (n,), takes the place of the
    output's, with what the values' bias becomes still to be added: rows of attention sum to one, so it is a constant.
    """
    heads, width, module = site.qkv.heads, site.head_width, model.get_submodule(site.name)
    assert isinstance(module, Attention | WindowAttention)
    dense_weight, dense_bias = dense_linear(model, site.qkv)
    weights = dense_weight.unflatten(1, (3, heads, width)).permute(1, 2, 0, 3)  # (3, h, n, s)
    biases = dense_bias.view(3, heads, 1, width)

    def project(part: int, transform: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = ((t[part] @ transform).transpose(0, 1).flatten(1)[:, kept] for t in (weights, biases))
        return weight, bias[0]

    def widths(kept: Tensor) -> list[int]:
        return torch.bincount(kept // width, minlength=heads).tolist()

    query, key = logits
    small = LowRankAttention(
        site.in_features, widths(kept_logits), widths(kept_values), float(module.scale), site.window_size
    )
    _write(small.query, *project(0, query, kept_logits))
    values, value_bias = project(2, value, kept_values)
    _write(small.key_value, torch.cat([project(1, key, kept_logits)[0], values], 1))
    _write(small.proj, output, bias + value_bias @ output)
    if isinstance(module, WindowAttention):
        small.relative_position_bias_table.data = module.relative_position_bias_table.detach().clone()
    return small.to(device=dense_weight.device, dtype=module.qkv.weight.dtype)


def fold_mlp(model: nn.Module, site: MlpSite, kept: Tensor, output: Tensor, bias: Tensor) -> SmallMlp:
    """The smaller MLP: kept hidden units, (kept,), the refitted second layer (kept, d), and its bias (d,)."""
    module = model.get_submodule(site.name)
    assert isinstance(module, Mlp)
    weight, first_bias = dense_linear(model, site.fc1)
    small = SmallMlp(site.in_features, len(kept), site.fc2.out_features, site.fc1.bias, copy.deepcopy(module.act))
    _write(small.fc1, weight[:, kept], first_bias[kept] if site.fc1.bias else None)
    _write(small.fc2, output, bias)
    return small.to(device=weight.device, dtype=module.fc1.weight.dtype)
