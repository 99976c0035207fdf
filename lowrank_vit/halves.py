"""The halves of a block, attention and MLP, as whole sites: find them, and fold what is kept into smaller modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from timm.layers import Attention, Mlp
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from lowrank_vit.attention import LowRankAttention
from lowrank_vit.errors import InputError
from lowrank_vit.layers import SmallMlp
from lowrank_vit.parts import AttentionSite, MlpSite
from lowrank_vit.records import Site, as_float64
from lowrank_vit.sites import BLOCK_LINEARS, find_sites, get_linear

HalfSite = AttentionSite | MlpSite


def _linear(name: str, layer: nn.Linear, heads: int = 0) -> Site:
    return Site(name, layer.in_features, layer.out_features, layer.bias is not None, heads)


def _plain(name: str, parts: Sequence[object]) -> None:
    """Raise ``InputError`` unless none of the optional parts of a module is there."""
    for part in parts:
        if part is not None and not isinstance(part, nn.Identity):
            raise InputError(
                f"{name!r} normalises or gates inside ({type(part).__name__}): recipe 'best' cannot keep that"
            )


def _attention_site(name: str, module: Attention | WindowAttention) -> AttentionSite:
    _plain(name, [getattr(module, part, None) for part in ("q_norm", "k_norm", "norm", "gate")])
    qkv = _linear(f"{name}.qkv", module.qkv, module.num_heads)
    if qkv.out_features != 3 * module.proj.in_features:
        raise InputError(f"{name!r} has keys and values of different widths: recipe 'best' cannot take it apart")
    window = tuple(module.window_size) if isinstance(module, WindowAttention) else None
    width = module.proj.in_features // module.num_heads
    return AttentionSite(name, qkv, _linear(f"{name}.proj", module.proj), width, window)


def _mlp_site(name: str, module: Mlp) -> MlpSite:
    _plain(name, [module.norm])
    return MlpSite(name, _linear(f"{name}.fc1", module.fc1), _linear(f"{name}.fc2", module.fc2))


def find_halves(model: nn.Module) -> list[HalfSite]:
    """Every attention module and MLP of every block, in the model's order.

    Raises ``InputError`` where a block has a linear layer that belongs to neither: half a block would stay behind.
    """
    halves: list[HalfSite] = []
    for name, module in model.named_modules():
        if isinstance(module, Attention | WindowAttention):
            halves.append(_attention_site(name, module))
        elif isinstance(module, Mlp) and isinstance(module.fc1, nn.Linear):
            halves.append(_mlp_site(name, module))
    covered = {f"{half.name}." for half in halves}
    for site in find_sites(model, BLOCK_LINEARS):
        if not any(site.name.startswith(prefix) for prefix in covered):
            raise InputError(
                f"recipe 'best' takes timm's ViT and Swin blocks; {site.name!r} of {type(model).__name__} is in neither "
                "an attention module nor an MLP that it knows: choose a recipe for single layers, as 'loss_aware'"
            )
    return halves


def _bias(linear: nn.Linear) -> Tensor:
    """The bias in float64, zeros where there is none."""
    return as_float64(linear.weight).new_zeros(linear.out_features) if linear.bias is None else as_float64(linear.bias)


def _write(layer: nn.Linear, weight: Tensor, bias: Tensor | None = None) -> None:
    """Put a weight, (n, d), and a bias, (d,), into a layer."""
    layer.weight.data = weight.T.contiguous()
    if bias is not None:
        layer.bias.data = bias.clone()


def _ragged(kept: Tensor, heads: int, width: int) -> tuple[Tensor, list[int]]:
    """Kept directions in the order of heads, and how many each head has."""
    kept = kept.sort().values
    return kept, torch.bincount(kept // width, minlength=heads).tolist()


def fold_attention(
    site: AttentionSite,
    module: Attention | WindowAttention,
    query: Tensor,
    key: Tensor,
    kept_logits: Tensor,
    value: Tensor,
    kept_values: Tensor,
    output: Tensor,
    shift: Tensor,
) -> LowRankAttention:
    """The smaller module: queries and keys in the transforms' kept columns, values likewise, the refitted output.

    query, key, value: (h, s, s), a head's dimensions to its directions; ``kept_*``: indices into h * s directions, in
    the order of heads for the rows of ``output``, (kept, n). ``shift``, (n,), takes the place of the output's bias, with
    what the values' bias becomes still to be added: rows of attention sum to one, so it is a constant.
    """
    heads, width = site.qkv.heads, site.head_width
    kept_logits, logit_widths = _ragged(kept_logits, heads, width)
    kept_values, value_widths = _ragged(kept_values, heads, width)
    weights = as_float64(module.qkv.weight).T.unflatten(1, (3, heads, width)).permute(1, 2, 0, 3)  # (3, h, n, s)
    biases = _bias(module.qkv).unflatten(0, (3, heads, 1, width))  # (3, h, 1, s)

    def project(part: int, transform: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = ((t[part] @ transform).transpose(0, 1).flatten(1)[:, kept] for t in (weights, biases))
        return weight, bias[0]

    small = LowRankAttention(site.qkv.in_features, logit_widths, value_widths, module.scale, site.window_size)
    _write(small.query, *project(0, query, kept_logits))
    values, value_bias = project(2, value, kept_values)
    _write(small.key_value, torch.cat([project(1, key, kept_logits)[0], values], 1))
    _write(small.proj, output, shift + value_bias @ output)
    if site.window_size is not None:
        small.relative_position_bias_table.data = module.relative_position_bias_table.detach().clone()
    return small.to(device=module.qkv.weight.device, dtype=module.qkv.weight.dtype)


def fold_mlp(site: MlpSite, module: Mlp, kept: Tensor, output: Tensor, shift: Tensor) -> SmallMlp:
    """The smaller MLP: kept hidden units, the refitted second layer (kept, d), and its bias (d,)."""
    fc1 = site.fc1
    small = SmallMlp(fc1.in_features, len(kept), site.fc2.out_features, fc1.bias, copy.deepcopy(module.act))
    weight = as_float64(module.fc1.weight).T[:, kept]
    _write(small.fc1, weight, None if module.fc1.bias is None else _bias(module.fc1)[kept])
    _write(small.fc2, output, shift)
    return small.to(device=module.fc1.weight.device, dtype=module.fc1.weight.dtype)


def dense_output(model: nn.Module, site: Site) -> tuple[Tensor, Tensor]:
    """Weight (n, d) and bias (d,) of a linear layer, float64."""
    layer = get_linear(model, site)
    return as_float64(layer.weight).T, _bias(layer)
