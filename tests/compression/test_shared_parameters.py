"""Layers that share a parameter, or stand at two places, stay dense, and the report says why; all others shrink."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lowrank_vit import compress, load, quantize, save
from lowrank_vit.runtime.errors import InputError
from tests.support.cases import few, in_turn

X = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def tiny() -> Any:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 48, "num_heads": 3, "num_classes": 10}
    model = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def weight() -> Any:
    model = tiny()
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    return model


def layer() -> Any:
    model = tiny()
    model.blocks[1].attn.proj = model.blocks[0].attn.proj
    return model


def block() -> Any:
    model = tiny()
    model.blocks[1] = model.blocks[0]
    return model


def norm() -> Any:
    model = tiny()
    model.blocks[1].norm1 = model.blocks[0].norm1
    return model


SHARING: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "a weight": (weight, ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"]),
    "a layer": (layer, ["blocks.0.attn.proj"]),
    "a block": (block, [f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]),
    "a norm": (norm, []),
}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        made: Tensor = model(X)
    return made


def error(small: nn.Module, dense: nn.Module) -> float:
    return float((logits(small) - logits(dense)).norm() / logits(dense).norm())


@pytest.mark.parametrize(("kind", "recipe"), few(in_turn(SHARING, ["best", "exact"])))
def test_what_shares_stays_dense(kind: str, recipe: str, tmp_path: Path) -> None:
    make, names = SHARING[kind]
    dense = make()
    small, report = compress(dense, [X], recipe, 0.1, device="cpu")
    reasons = report["left_dense"].get("reasons", {})
    assert list(reasons) == names
    assert all("tied to" in reason for reason in reasons.values())
    for name in names:
        assert torch.equal(small.get_submodule(name).weight, dense.get_submodule(name).weight)  # type: ignore[arg-type]
    assert error(small, dense) < 0.3
    save(small, tmp_path / "small", report)
    torch.testing.assert_close(logits(load(tmp_path / "small")), logits(small))


def test_nothing_is_left_where_every_block_is_one() -> None:
    model = block()
    model.blocks[2] = model.blocks[0]
    with pytest.raises(
        InputError, match=r"no layer to compress: 'blocks\.0\.attn\.qkv' is tied to 'blocks\.1\.attn\.qkv'"
    ):
        compress(model, [X], "best", 0.2, device="cpu")


@pytest.mark.parametrize("kind", ["a weight", "a layer", "a block"])
def test_rounding_leaves_it_too(kind: str) -> None:
    make, names = SHARING[kind]
    rounded, addition = quantize(make(), 4)
    assert list(addition["quantization"]["left_dense"]) == names
    assert 0 < error(rounded, make()) < 0.3
