"""A linear layer computes ``x W^T + b`` and nothing else; whatever does more stays as it is, and the report says why."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lowrank_vit import compress
from lowrank_vit.modules.surgery import replace_module
from tests.support.cases import in_turn

X = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
WORD = {"adapter": "forward pass", "hooked": "hook"}


class Adapted(nn.Linear):
    """Add ``x A^T B^T``, as adapters do."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.a = nn.Parameter(torch.randn(4, self.in_features) / 4)
        self.b = nn.Parameter(torch.randn(self.out_features, 4) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.a.T @ self.b.T


def adapter(layer: nn.Linear) -> nn.Linear:
    made = Adapted(layer.in_features, layer.out_features)
    made.weight, made.bias = layer.weight, layer.bias
    return made


def patched(layer: nn.Linear) -> nn.Linear:
    layer.forward = lambda x: 2 * nn.Linear.forward(layer, x)  # type: ignore[method-assign]
    return layer


def parametrized(layer: nn.Linear) -> nn.Linear:
    return parametrizations.weight_norm(layer)


def double(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return 2 * output


def hooked(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_hook(double)
    return layer


CHANGES: dict[str, Callable[[nn.Linear], nn.Linear]] = {"adapter": adapter, "hooked": hooked}


def model(change: Callable[[nn.Linear], nn.Linear], *names: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 10}
    made = timm.create_model("vit_tiny_patch16_224", init_values=0.5, **sizes).eval()
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    for name in names or [name for name, layer in made.named_modules() if isinstance(layer, nn.Linear)]:
        replace_module(made, name, change(made.get_submodule(name)))  # type: ignore[arg-type]
    return made


def same_layer(small: nn.Module, dense: nn.Module, name: str) -> bool:
    x = torch.randn(2, 5, dense.get_submodule(name).in_features)  # type: ignore[arg-type]
    with torch.no_grad():
        return torch.allclose(small.get_submodule(name)(x), dense.get_submodule(name)(x), atol=2e-3)


@pytest.mark.parametrize(("change", "name"), in_turn(CHANGES, ["blocks.0.attn.qkv", "blocks.1.mlp.fc2"]))
def test_compress_leaves_it_dense(change: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    dense = model(CHANGES[change], name)
    small, report = compress(dense, [X], "best", 0.1, device="cpu")
    assert WORD[change] in report["left_dense"]["reasons"][name]
    assert f"left dense: {name}" in caplog.text
    assert same_layer(small, dense, name)
    with torch.no_grad():
        assert float((small(X) - dense(X)).norm() / dense(X).norm()) < 0.2
