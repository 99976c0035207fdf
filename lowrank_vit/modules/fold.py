"""Folding: the smaller layer or module, made from what is kept of the one that it replaces."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.modules.low_rank_linear import SMALL_MLPS, LowRankLinear, SmallMlp, low_rank_linear
from lowrank_vit.modules.narrow_values import NarrowOutput, NarrowValues, balance_values
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.moments import as_float64
from lowrank_vit.records.sites import AttentionSite, MlpSite, Site


@dataclass(frozen=True)
class CutLayer:
    """Hold one layer at its rank: ``W^ = U V^T + Z``, where a low-rank Z is folded into U and V as ``[U G][V Y]^T``."""

    site: Site
    rank: int  # of U V^T without Z
    u: Tensor  # shape: (n, r + q)
    v: Tensor  # shape: (d, r + q)
    correction: nn.Module | None = None  # a Z that does not fold
    shift: Tensor | None = None  # shape: (d,), what is added to the bias

    @property
    def parameters(self) -> int:
        """Count the parameters of the deployed layer, without a bias that the dense one has, too."""
        added_bias = self.site.out_features if self.shift is not None and not self.site.bias else 0
        correction = 0 if self.correction is None else sum(p.numel() for p in self.correction.parameters())
        return self.u.numel() + self.v.numel() + correction + added_bias


def fold(layer: CutLayer, linear: nn.Linear) -> LowRankLinear:
    """Make the module that replaces ``linear``: one pair of balanced factors, the corrected bias, and Z beside them."""
    bias: Tensor | None = linear.bias
    if layer.shift is not None:
        bias = layer.shift if bias is None else as_float64(bias) + layer.shift
    return low_rank_linear(layer.u, layer.v, bias, like=linear, correction=layer.correction)


@dataclass(frozen=True)
class AttentionWeights:
    """Hold the weights of a dense attention module, float64, from which its smaller form is made."""

    weight: Tensor  # shape: (n, 3 h s), of queries, keys and values, each by heads
    bias: Tensor  # shape: (3 h s,)
    scale: float  # of the logits
    dtype: torch.dtype  # of the module
    position_bias: Tensor | None = None  # of each relative position of a window and each head, as the module has it


@dataclass(frozen=True)
class MlpWeights:
    """Hold the weights of a dense MLP, float64, from which its smaller form is made."""

    weight: Tensor  # shape: (n, rows * hidden), of the first layers; with gates these come first
    bias: Tensor  # shape: (rows * hidden,)
    act: nn.Module
    dtype: torch.dtype  # of the module


def _write(layer: nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
    """Put a weight, (n, d), and a bias, (d,), into a layer."""
    layer.weight.data = weight.T.contiguous()
    if bias is not None:
        layer.bias.data = bias.clone()


def fold_attention(
    site: AttentionSite,
    dense: AttentionWeights,
    logits: tuple[Tensor, Tensor],
    kept_logits: Tensor,
    value: Tensor,
    kept_values: Tensor,
    output: Tensor,
    bias: Tensor,
) -> LowRankAttention:
    """Make the smaller attention: queries and keys in the transforms' kept columns, values likewise, the refitted output.

    ``logits`` (queries and keys) and ``value``: (h, s, s) each, a head's dimensions to its directions; ``kept_*``:
    indices into the h * s directions, ascending, (kept,); ``output``: (kept, n). ``bias``, (n,), replaces the output's; the
    values' bias is carried through the output and added to it, a constant since rows of attention sum to one.
    """
    heads, width = site.qkv.heads, site.head_width
    weights = dense.weight.unflatten(1, (3, heads, width)).permute(1, 2, 0, 3)  # (3, h, n, s)
    biases = dense.bias.view(3, heads, 1, width)

    def project(part: int, transform: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = ((t[part] @ transform).transpose(0, 1).flatten(1)[:, kept] for t in (weights, biases))
        return weight, bias[0]

    def widths(kept: Tensor) -> list[int]:
        return torch.bincount(kept // width, minlength=heads).tolist()

    query, key = logits
    kept = widths(kept_logits), widths(kept_values)
    small = LowRankAttention(site.in_features, *kept, dense.scale, site.window_size, site.class_token)
    _write(small.query, *project(0, query, kept_logits))
    values, value_bias = project(2, value, kept_values)
    _write(small.key_value, torch.cat([project(1, key, kept_logits)[0], values], 1))
    _write(small.proj, output, bias + value_bias @ output)
    if dense.position_bias is not None:
        small.relative_position_bias_table.data = dense.position_bias.detach()[:, small.live].clone()
    return small.to(device=dense.weight.device, dtype=dense.dtype)


def without_biases(attention: LowRankAttention) -> LowRankAttention:
    """Set to zero all biases of a smaller attention, in place, as COMCAT's code does, and return it."""
    for layer in (attention.query, attention.proj):
        layer.bias.data.zero_()
    return attention


def fold_values(
    site: AttentionSite,
    attention: nn.Module,
    dense: tuple[Tensor, Tensor],
    value: Tensor,
    kept: Tensor,
    output: Tensor,
    bias: Tensor,
) -> nn.Module:
    """Exchange the layers of values and outputs in an attention module, in place, and return it.

    ``dense``: weight (n, others + h * s) and bias (others + h * s,) of the values' layer, which may make queries and keys
    first; the other arguments are as in ``fold_attention``. The values' bias stays with them if their layer has it;
    otherwise the output's takes it up, since rows of attention sum to one.
    """
    (weight, biases), inner = dense, site.proj.in_features
    others, whole = weight.shape[1] - inner, torch.block_diag(*value)[:, kept]
    widths = torch.bincount(kept // site.head_width, minlength=site.qkv.heads).tolist()
    values = NarrowValues(site.in_features, weight.shape[1], others, widths, site.qkv.bias)
    narrow = torch.cat([weight[:, :others], weight[:, others:] @ whole], 1)
    value_bias = biases[others:] @ whole
    _write(values.linear, narrow, torch.cat([biases[:others], value_bias]) if site.qkv.bias else None)
    outputs = NarrowOutput(inner, site.proj.out_features, widths)
    _write(outputs.up, output, bias if site.qkv.bias else bias + value_bias @ output)
    for layer, made in ((site.qkv, values), (site.proj, outputs)):
        name = layer.name.rpartition(".")[2]
        before = next(attention.get_submodule(name).parameters())
        replace_module(attention, name, made.to(device=before.device, dtype=before.dtype))
    return attention


def balance_directions(model: nn.Module) -> None:
    """Balance the directions of every smaller attention module; the outputs are unchanged."""
    for module in model.modules():
        if isinstance(module, LowRankAttention):
            module.balance()
        balance_values(module)


def fold_mlp(site: MlpSite, dense: MlpWeights, kept: Tensor, output: Tensor, bias: Tensor) -> SmallMlp:
    """Make the smaller MLP: kept hidden units, (kept,), the refitted second layer (kept, d), and its bias (d,)."""
    rows, bias_too = site.rows, site.inputs[0].bias
    small = SMALL_MLPS[rows](site.in_features, len(kept), site.fc2.out_features, bias_too, copy.deepcopy(dense.act))
    weight, first_bias = (t.unflatten(-1, (rows, -1))[..., kept].flatten(-2) for t in (dense.weight, dense.bias))
    _write(small.fc1, weight, first_bias if bias_too else None)
    _write(small.fc2, output, bias)
    return small.to(device=dense.weight.device, dtype=dense.dtype)
