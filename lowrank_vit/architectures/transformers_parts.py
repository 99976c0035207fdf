"""Attention and MLPs of Hugging Face's ``transformers``, exchanged for timm's with the same weights.

What is known of timm's parts then holds for them, too. Classes are told by their names, so that nothing here needs the
package; a part that has something else than its class had when this was written stays as it is.
"""

from typing import Any

import torch
from timm.layers import Attention, AttentionPoolLatent, Mlp, SwiGLU
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from lowrank_vit.architectures.linears import called, computes_as_known
from lowrank_vit.architectures.origin import kind_of
from lowrank_vit.modules.surgery import replace_module

CORE = "core"  # the name of timm's attention in the module that answers for it


class Answering(nn.Module):
    """Wrap timm's attention, or its smaller form, for a block of transformers, which expects attention weights as well.

    They are None, as with all fused kernels.
    """

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, None]:
        """Map (B, T, n) to (B, T, n)."""
        return self.core(hidden_states, attention_mask), None


def exchange_parts(model: nn.Module) -> nn.Module:
    """Exchange the parts of all blocks of transformers' models, in place, and return the model."""
    # their classifiers average tokens, whatever a head pools
    unread = kind_of(model).endswith("ForImageClassification")
    for name, module in list(model.named_modules()):
        made = None if unread and kind_of(module).endswith("AttentionPoolingHead") else _made(module)
        if made is not None and computes_as_known(module):
            replace_module(model, name, made.train(module.training))
    return model


def _made(module: Any) -> nn.Module | None:
    """Make timm's form of a part; None for any other module."""
    kind = kind_of(module)
    children = {name for name, _ in module.named_children()}
    if kind.endswith("Attention") and {"q_proj", "k_proj", "v_proj"} <= children:
        return _attention(module, children - {"q_proj", "k_proj", "v_proj"})
    if kind.endswith("MLP") and children == {"fc1", "activation_fn", "fc2"}:
        return _mlp(module)
    if kind.endswith("SwiGLUFFN") and children == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return _gated(module)
    if kind.endswith("AttentionPoolingHead") and children == {"attention", "layernorm", "mlp"}:
        return _pool(module)
    return None


def _attention(module: Any, others: set[str]) -> nn.Module | None:
    """Make timm's attention: plain, or within windows; None where widths differ or further parts are there."""
    output = next((name for name in ("o_proj", "out_proj") if name in others), "")
    layers = [module.q_proj, module.k_proj, module.v_proj]
    n, bias = layers[0].in_features, layers[0].bias is not None
    proj = getattr(module, output, None)
    shapes = {(layer.in_features, layer.out_features, layer.bias is not None) for layer in layers}
    if proj is None or shapes != {(n, n, bias)} or proj.out_features != n or n % module.head_dim:
        return None
    heads, drop = n // module.head_dim, _dropout(module)
    made: Attention | WindowAttention
    if others == {output}:
        with torch.device("meta"):
            made = Attention(n, heads, qkv_bias=bias, proj_bias=proj.bias is not None, attn_drop=drop)
    elif others == {output, "relative_position_bias"} and proj.bias is not None:
        biases = module.relative_position_bias
        with torch.device("meta"):
            made = WindowAttention(n, heads, window_size=biases.window_size, qkv_bias=bias, attn_drop=drop)
        made.relative_position_bias_table = biases.relative_position_bias_table
        index = biases.relative_position_index.view(biases.window_area, biases.window_area)
        made.register_buffer("relative_position_index", index, persistent=False)
    else:
        return None
    made.qkv, made.proj = _stacked(layers), proj
    return Answering(made)


def _dropout(module: Any) -> float:
    share = getattr(module, "attention_dropout", getattr(module, "dropout", 0.0))
    return share if isinstance(share, float) else 0.0


def _stacked(layers: list[nn.Linear]) -> nn.Linear:
    """Make one layer of several with the same input: their outputs one after the other."""
    first = layers[0]
    with torch.device("meta"):
        stacked = nn.Linear(first.in_features, sum(layer.out_features for layer in layers), first.bias is not None)
    trained = first.weight.requires_grad
    stacked.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]), trained)
    if first.bias is not None:
        stacked.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]), trained)
    return stacked


def _mlp(module: Any) -> Mlp:
    with torch.device("meta"):
        made = Mlp(module.fc1.in_features, module.fc1.out_features, module.fc2.out_features)
    made.fc1, made.act, made.fc2 = module.fc1, module.activation_fn, module.fc2
    return made


def _gated(module: Any) -> nn.Module:
    up, down = module.up_proj, module.down_proj
    with torch.device("meta"):
        made = SwiGLU(up.in_features, up.out_features, down.out_features)
    made.fc1_g, made.act, made.fc1_x, made.fc2 = module.gate_proj, module.act_fn, up, down
    return made


def _pool(module: Any) -> nn.Module | None:
    """Make timm's attention pooling of SigLIP's head, whose attention is torch's own."""
    attention: nn.MultiheadAttention = module.attention
    n, weight, bias = attention.embed_dim, attention.in_proj_weight, attention.in_proj_bias
    if weight is None or bias is None:
        return None
    with torch.device("meta"):
        made = AttentionPoolLatent(n, num_heads=attention.num_heads, norm_layer=nn.LayerNorm)
    made.latent, made.norm, made.proj = module.probe, module.layernorm, called(attention.out_proj)
    made.mlp = _mlp(module.mlp)
    for layer, rows in ((made.q, slice(n)), (made.kv, slice(n, None))):
        layer.weight = nn.Parameter(weight.detach()[rows].clone(), weight.requires_grad)
        layer.bias = nn.Parameter(bias.detach()[rows].clone(), bias.requires_grad)
    return made
