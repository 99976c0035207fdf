"""Modules that do not compute what their class does: by hooks, by a forward pass of their own, or around another layer."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lowrank_vit import compress, quantize

X = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SIZES = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 48, "num_heads": 3, "num_classes": 10}


def tiny() -> Any:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SIZES).eval()
    for parameter in model.parameters():
        parameter.data += 0.08 * torch.randn_like(parameter)
    return model


def hooked(module: nn.Module) -> None:
    module.register_forward_hook(lambda module, inputs, output: 2 * output)


def in_place(module: nn.Module) -> None:
    def double(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.mul_(2)

    module.register_forward_hook(double)


def before(module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda module, inputs: (1.5 * inputs[0],))


def patched(module: nn.Module) -> None:
    own = type(module).forward
    module.forward = MethodType(lambda self, x, **given: 2 * own(self, x, **given), module)  # type: ignore[method-assign]


def small(model: nn.Module) -> tuple[float, Any, nn.Module]:
    made, report = compress(model, [X], "best", 0.15, device="cpu")
    with torch.no_grad():
        return float((made(X) - model(X)).norm() / model(X).norm()), report, made


@pytest.fixture(scope="module")
def bare() -> Tensor:
    made = small(tiny())[2]
    with torch.no_grad():
        outputs: Tensor = made(X)
    return outputs


@pytest.mark.parametrize("change", [hooked, before, patched])
@pytest.mark.parametrize("name", ["blocks.0.norm1", "patch_embed.proj", "blocks.0.attn", "blocks.0.mlp", "blocks.0"])
def test_what_changes_a_module_is_kept(name: str, change: Callable[[nn.Module], None]) -> None:
    model = tiny()
    change(model.get_submodule(name))
    error, report, made = small(model)
    assert error < 0.04
    whole = name.endswith(("norm1", "proj"))  # which have a plain form beside the changed one
    assert ("fallback" in report) != whole
    kind = type(made.get_submodule(name)).__name__
    assert kind.startswith("Changed") or name == "blocks.0.norm1"


def test_what_is_changed_in_place_is_seen() -> None:
    model = tiny()
    in_place(model.blocks[0].mlp)
    _, report, _ = small(model)
    assert "ChangedMlp" in report["fallback"]["reason"]


def test_hooks_that_only_watch_change_nothing(bare: Tensor) -> None:
    model, seen = tiny(), list[Tensor]()
    for block in model.blocks:
        for module in (block, block.attn, block.mlp, block.norm1, block.mlp.fc1):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output))
            module.register_forward_pre_hook(lambda module, inputs: None)
    _, report, made = small(model)
    assert "fallback" not in report
    with torch.no_grad():
        torch.testing.assert_close(made(X), bare)
        seen.clear()
        model(X)
    assert len(seen) == 15  # the caller's own


class Around(nn.Module):
    """Add to a layer what adapters do, in a module around it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base, self.down = layer, nn.Linear(layer.in_features, 4, bias=False)
        self.up = nn.Linear(4, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.base(x) + self.up(self.down(x))
        return outputs


def test_adapters_around_every_layer_stay() -> None:
    model = tiny()
    for block in model.blocks:
        for part, name in ((block.attn, "qkv"), (block.attn, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")):
            setattr(part, name, Around(getattr(part, name)))
    error, report, _ = small(model)
    assert error < 0.1
    assert "is a Around, no linear layer" in report["fallback"]["reason"]
    rounded, _ = quantize(model, 8)
    with torch.no_grad():
        assert float((rounded(X) - model(X)).norm() / model(X).norm()) < 0.02
