"""A linear layer computes ``x W^T + b``: what does more stays as it is, or is made part of the weights, and is told."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from lowrank_vit import compress, export_integers, learn, load, quantize, save
from lowrank_vit.architectures.permanent import copied
from lowrank_vit.modules.surgery import replace_module
from tests.support.cases import few, in_turn
from tests.support.models import distance, small_vit

X = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


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


def double(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return 2 * output


def hooked(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_hook(double)
    return layer


SIZES = {"embed_dim": 32, "num_heads": 2, "init_values": 0.5}


def model(change: Callable[[nn.Linear], nn.Linear], *names: str) -> nn.Module:
    made = small_vit(**SIZES)
    for name in names:
        replace_module(made, name, change(made.get_submodule(name)))  # type: ignore[arg-type]
    return made


def same_layer(small: nn.Module, dense: nn.Module, name: str) -> bool:
    x = torch.randn(2, 5, dense.get_submodule(name).in_features)  # type: ignore[arg-type]
    with torch.no_grad():
        return torch.allclose(small.get_submodule(name)(x), dense.get_submodule(name)(x), atol=2e-3)


@pytest.mark.parametrize(
    ("change", "name", "reason"), [(adapter, "blocks.0.attn.qkv", "forward pass"), (hooked, "blocks.1.mlp.fc2", "hook")]
)
def test_compress_leaves_it_dense(change: Any, name: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    dense = model(change, name)
    small, report = compress(dense, [X], "best", 0.1, device="cpu")
    assert reason in report["left_dense"]["reasons"][name]
    assert f"left dense: {name}" in caplog.text
    assert same_layer(small, dense, name)
    assert distance(small, dense, X) < 0.2


ODD: dict[str, tuple[Callable[[nn.Linear], nn.Linear], bool]] = {  # whether it is made part of the weights
    "adapter": (adapter, False),
    "patched": (patched, False),
    "hooked": (hooked, False),
    "pruned": (lambda layer: prune.l1_unstructured(layer, "weight", 0.3), True),
    "frozen": (lambda layer: layer.requires_grad_(False), True),
}
ODD_ONES = ("blocks.0.mlp.fc1", "blocks.1.attn.proj")


@pytest.mark.parametrize(("odd", "outside"), in_turn(ODD, [None, 8]))
def test_rounding_leaves_it_and_says_so(odd: str, outside: int | None) -> None:
    change, plain = ODD[odd]
    dense = model(change, *ODD_ONES)
    rounded, addition = quantize(dense, 8, outside=outside)
    assert tuple(addition["quantization"].get("left_dense", ())) == (() if plain else ODD_ONES)
    assert addition["quantization"]["layers"] == (8 if plain else 6) + (0 if outside is None else 2)
    assert distance(rounded, dense, X) < 0.03


@pytest.mark.parametrize("odd", few(ODD))
def test_bits_are_chosen_for_the_others(odd: str) -> None:
    change, plain = ODD[odd]
    dense = model(change, *ODD_ONES)
    small, report = compress(dense, [X], "best", budget={"bytes": "60KiB"}, bits=[4, 8], device="cpu")
    assert tuple(report["left_dense"].get("reasons", ())) == (() if plain else ODD_ONES)
    assert distance(small, dense, X) < 0.05
    for name in () if plain else ODD_ONES:
        assert same_layer(small, dense, name)


@pytest.mark.parametrize("odd", few(ODD))
def test_gates_pass_it_by(odd: str) -> None:
    change, plain = ODD[odd]
    dense, data = model(change, *ODD_ONES), [(X, torch.arange(8))]
    learnt = learn(dense, data, "losparse", 0.1, epochs=1, progress=False)
    assert {f"{name}.row" in learnt.scores for name in ODD_ONES} == {plain}
    small, report = compress(dense, [X], "losparse", 0.1, learnt=learnt, device="cpu")
    assert tuple(report["left_dense"].get("reasons", ())) == (() if plain else ODD_ONES)
    assert distance(small, dense, X) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("odd", ODD)
def test_a_file_of_integers_computes_it(odd: str, tmp_path: Path) -> None:
    import onnxruntime

    dense = model(ODD[odd][0], *ODD_ONES)
    export_integers(dense, tmp_path / "it.onnx", 8, [X])
    made = onnxruntime.InferenceSession(tmp_path / "it.onnx").run(None, {"images": X.numpy()})[0]
    assert distance(lambda _: torch.from_numpy(made), dense, X) < 0.06  # type: ignore[arg-type]


NAMES = ("blocks.0.attn.qkv", "blocks.1.mlp.fc1")


def pruned(layer: nn.Linear) -> nn.Linear:
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


class Adapter(nn.Module):
    """A layer as peft has it, with the methods that merging calls."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.disable_adapters = layer, False
        self.a, self.b = nn.Linear(layer.in_features, 2, bias=False), nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)
        return y if self.disable_adapters else y + self.b(self.a(x))

    def merge(self) -> None:
        self.base_layer.weight.data += self.b.weight.data @ self.a.weight.data

    def get_base_layer(self) -> nn.Linear:
        return self.base_layer


class Disabled(Adapter):
    """One that is switched off."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.disable_adapters = True


Adapter.__module__ = Disabled.__module__ = "peft.tuners.lora.layer"


def old(norm: Callable[[nn.Linear], nn.Linear]) -> Callable[[nn.Linear], nn.Linear]:
    def change(layer: nn.Linear) -> nn.Linear:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return norm(layer)

    return change


KINDS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "pruning mask": pruned,
    "old weight norm": old(weight_norm),
    "old spectral norm": old(spectral_norm),
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "adapter": Adapter,
    "adapter switched off": Disabled,
}
each = pytest.mark.parametrize("kind", few(["adapter", *(kind for kind in KINDS if kind != "adapter")], 1))


def made(kind: str) -> nn.Module:
    """A model that has seen a batch with gradients, so that it cannot be copied as it is."""
    dense = model(KINDS[kind], *NAMES).train()  # type: ignore[arg-type]
    dense(X).sum().backward()
    return dense.eval()


@each
def test_the_copy_computes_the_same_with_plain_layers(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    dense = made(kind)
    before = dense(X)
    own = copied(dense)
    assert distance(own, dense, X) < 1e-6
    assert "blocks.0.attn.qkv (and 1 more) are made part of the weights" in caplog.text
    assert type(own.get_submodule(NAMES[0])) is nn.Linear
    assert set(own.state_dict()) == set(model(lambda layer: layer, *NAMES).state_dict())
    assert torch.equal(dense(X), before)  # and the caller's model is what it was
    assert type(dense.get_submodule(NAMES[0])) is not nn.Linear or kind.startswith(("pruning", "old"))


@pytest.mark.slow
@each
def test_every_verb_takes_it(kind: str, tmp_path: Path) -> None:
    dense = made(kind)
    plain = copied(dense)
    small, report = compress(dense, [X], "best", 0.2, device="cpu")
    same, _ = compress(plain, [X], "best", 0.2, device="cpu")
    assert "fallback" not in report
    assert distance(small, same, X) < 1e-4
    rounded, _ = compress(dense, [X], budget="bytes=0.3", bits=(4, 8), device="cpu")
    assert distance(rounded, dense, X) < 0.1
    assert distance(quantize(dense, 8, [X], quantizer="gptq")[0], dense, X) < 0.02
    save(small, tmp_path / "it", model_args={"img_size": 32, "patch_size": 8, "depth": 2, **SIZES})
    assert distance(load(tmp_path / "it", model=dense), small, X) == 0


@pytest.mark.parametrize("kind", few(["adapter", "pruning mask", "weight norm"], 1))
def test_gates_are_learnt_on_plain_layers(kind: str) -> None:
    dense = made(kind)
    learnt = learn(dense, [(X, torch.arange(8))], "vtp", 0.1, epochs=1, progress=False)
    assert learnt.scores
    assert type(dense.get_submodule(NAMES[0])) is nn.Linear
    compress(dense, [X], "vtp", 0.1, learnt=learnt, device="cpu")


@pytest.mark.slow
def test_a_levit_that_has_seen_a_batch_with_gradients() -> None:
    levit = timm.create_model("levit_128s", num_classes=10).eval()
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    levit(images).sum().backward()
    small, _ = compress(levit, [images], "loss_aware", 0.1, device="cpu")
    assert distance(small, levit, images) < 0.5


@pytest.mark.slow
def test_parameters_that_were_made_in_inference_mode() -> None:
    with torch.inference_mode():
        dense = model(lambda layer: layer, *NAMES)
    small, report = compress(dense, [X], "best", 0.2, device="cpu")
    assert report["refit"]
    assert distance(small, dense, X) < 0.3
