"""A linear layer computes ``x W^T + b`` and nothing else; whatever does more stays as it is, and the report says why."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from lowrank_vit import compress, export_integers, learn, quantize
from lowrank_vit.modules.surgery import replace_module
from tests.support.cases import few, in_turn

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


ODD: dict[str, tuple[Callable[[nn.Linear], nn.Linear], bool]] = {  # whether it is made part of the weights
    "adapter": (adapter, False),
    "patched": (patched, False),
    "hooked": (hooked, False),
    "weight norm": (parametrized, True),
    "old weight norm": (nn.utils.weight_norm, True),
    "pruned": (lambda layer: prune.l1_unstructured(layer, "weight", 0.3), True),
    "frozen": (lambda layer: layer.requires_grad_(False), True),
}
NAMES = ("blocks.0.mlp.fc1", "blocks.1.attn.proj")
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")


def error(small: nn.Module, dense: nn.Module) -> float:
    with torch.no_grad():
        return float((small(X) - dense(X)).norm() / dense(X).norm())


@pytest.mark.parametrize(("odd", "outside"), in_turn(ODD, [None, 8]))
def test_rounding_leaves_it_and_says_so(odd: str, outside: int | None) -> None:
    change, plain = ODD[odd]
    dense = model(change, *NAMES)
    rounded, addition = quantize(dense, 8, outside=outside)
    assert tuple(addition["quantization"].get("left_dense", ())) == (() if plain else NAMES)
    assert addition["quantization"]["layers"] == (8 if plain else 6) + (0 if outside is None else 2)
    assert error(rounded, dense) < 0.03


@pytest.mark.parametrize("odd", few(ODD))
def test_bits_are_chosen_for_the_others(odd: str) -> None:
    change, plain = ODD[odd]
    dense = model(change, *NAMES)
    small, report = compress(dense, [X], "best", budget={"bytes": "60KiB"}, bits=[4, 8], device="cpu")
    assert tuple(report["left_dense"].get("reasons", ())) == (() if plain else NAMES)
    assert error(small, dense) < 0.05
    for name in () if plain else NAMES:
        assert same_layer(small, dense, name)


@pytest.mark.parametrize("odd", few(ODD))
def test_gates_pass_it_by(odd: str) -> None:
    change, plain = ODD[odd]
    dense, data = model(change, *NAMES), [(X, torch.arange(8))]
    learnt = learn(dense, data, "losparse", 0.1, epochs=1, progress=False)
    assert {f"{name}.row" in learnt.scores for name in NAMES} == {plain}
    small, report = compress(dense, [X], "losparse", 0.1, learnt=learnt, device="cpu")
    assert tuple(report["left_dense"].get("reasons", ())) == (() if plain else NAMES)
    assert error(small, dense) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("odd", ODD)
def test_a_file_of_integers_computes_it(odd: str, tmp_path: Path) -> None:
    import onnxruntime

    dense = model(ODD[odd][0], *NAMES)
    export_integers(dense, tmp_path / "it.onnx", 8, [X])
    made = onnxruntime.InferenceSession(tmp_path / "it.onnx").run(None, {"images": X.numpy()})[0]
    assert error(lambda _: torch.from_numpy(made), dense) < 0.06  # type: ignore[arg-type]
