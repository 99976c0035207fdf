"""Modules that cannot be taken as a whole are refused by name, where the recipe has nothing to fall back to."""

from __future__ import annotations

import pytest
import timm
from torch import nn

from lowrank_vit import InputError, compress, get_recipe
from tests.support.models import VIT, images, tiny

WHOLE = get_recipe("best").only("attention", "mlp")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vit_tiny_patch16_224", {**VIT, "scale_attn_norm": True}, r"'blocks\.0\.attn' normalises its values"),
        ("vit_tiny_patch16_224", {**VIT, "scale_mlp_norm": True}, r"'blocks\.0\.mlp' normalises its hidden"),
        ("vit_tiny_patch16_224", {**VIT, "attn_layer": "diff"}, r"'blocks\.0\.attn\.qkv' belongs to .*DiffAttention"),
    ],
)
def test_what_it_cannot_keep_is_refused_by_name(name: str, arguments: dict, message: str) -> None:
    model = timm.create_model(name, pretrained=False, **arguments)
    with pytest.raises(InputError, match=rf"{message}.* choose a recipe for single layers"):
        compress(model, [images(4)], WHOLE, 0.3)


def test_gates_are_refused_by_name() -> None:
    model = tiny()
    model.blocks[1].attn.gate = nn.Linear(16, 16)
    with pytest.raises(InputError, match=r"'blocks\.1\.attn' gates its values"):
        compress(model, [images(4)], WHOLE, 0.3)
