"""Attention as most families of timm have it: queries, keys and values by one linear layer, the output by another."""

from __future__ import annotations

from typing import Any

from lowrank_vit.architectures.base import checked_attention
from lowrank_vit.architectures.parts import described_linear, refuse_extras
from lowrank_vit.records.layers import AttentionSite

EXTRAS = {
    "q_norm": "normalises its queries",
    "k_norm": "normalises its keys",
    "norm": "normalises its values",
    "gate": "gates its values",
}


def plain_attention(name: str, module: Any, **further: Any) -> AttentionSite:
    """Describe an attention module of two layers called ``qkv`` and ``proj``; ``further``: fields of its site."""
    refuse_extras(name, module, EXTRAS)
    qkv, proj = (
        described_linear(f"{name}.qkv", module.qkv, module.num_heads),
        described_linear(f"{name}.proj", module.proj),
    )
    return checked_attention(AttentionSite(name, qkv, proj, proj.in_features // module.num_heads, **further))
