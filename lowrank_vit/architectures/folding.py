"""Norms and LayerScale folded into linear layers: the same function of fewer parameters.

The last norm keeps its scale and shift: what it hands on is read by users (``forward_features``) and by distillation.
"""

from collections.abc import Sequence

import timm.layers
import torch
from torch import nn

from lowrank_vit.architectures.base import Branch, family_of
from lowrank_vit.architectures.linears import is_linear
from lowrank_vit.modules.skipped import PlainNorm, Unscaled
from lowrank_vit.modules.surgery import output_layer, replace_module
from lowrank_vit.records.moments import as_float64
from lowrank_vit.runtime.errors import InputError

NORMS = (nn.LayerNorm, timm.layers.LayerNorm)  # over the last dimension; a subclass may take another


def fold_norms(model: nn.Module) -> None:
    """Fold every norm read only by linear layers with a bias into these, and every LayerScale into the layer before it.

    In place. ``y = (x' g + b) W + c`` becomes ``y = x' (g W) + (b W + c)``, where x' is normalised; LayerScale's factors s
    turn ``x W + c`` into ``x (W s) + c s``. Other norms stay, and so do all of a model whose blocks are of no known kind.
    """
    try:
        family = family_of(model)
        readers = {site.name: site.readers for site in family.survey(model)[0]}
        branches = [(name, branch) for name, step in family.steps(model).items() for branch in family.branches(step)]
    except InputError:  # without linear layers in blocks, or of no known kind
        return
    for step, branch in branches:
        layers = [model.get_submodule(name) for name in readers.get(f"{step}.{branch.name}", ())]
        if branch.norm and layers:
            _fold_norm(branch, layers)
        if branch.layer_scale:
            _fold_scale(branch)


@torch.no_grad()
def _fold_norm(branch: Branch, readers: Sequence[nn.Module]) -> None:
    """Fold the scale and shift of a branch's norm into the layers that read it, unless one of them cannot take them up."""
    norm = branch.block.get_submodule(branch.norm)
    if not isinstance(norm, nn.LayerNorm) or type(norm) not in NORMS or norm.weight is None:
        return
    linears = [reader for reader in readers if is_linear(reader) and reader.bias is not None]
    if len(linears) < len(readers):
        return
    for linear in linears:
        weight = as_float64(linear.weight)
        if norm.bias is not None:
            linear.bias.copy_(as_float64(linear.bias) + weight @ as_float64(norm.bias))
        linear.weight.copy_(weight * as_float64(norm.weight))
    plain = PlainNorm(norm.normalized_shape[0], norm.eps).train(norm.training)
    replace_module(branch.block, branch.norm, plain)


@torch.no_grad()
def _fold_scale(branch: Branch) -> None:
    """Multiply a branch's output layer by the factors of the LayerScale after it."""
    scale = branch.block.get_submodule(branch.layer_scale)
    linear = output_layer(branch.block.get_submodule(branch.output_name))
    if type(scale) is not timm.layers.LayerScale or not is_linear(linear):
        return
    gamma = as_float64(scale.gamma)
    linear.weight.copy_(as_float64(linear.weight) * gamma[:, None])
    if linear.bias is not None:
        linear.bias.copy_(as_float64(linear.bias) * gamma)
    replace_module(branch.block, branch.layer_scale, Unscaled())
