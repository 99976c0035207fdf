"""What makes weights from others - masks, norms, adapters - is part of the weights before anything is measured."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from lowrank_vit import compress, learn, load, quantize, save
from lowrank_vit.architectures.permanent import copied
from tests.architectures.test_plain_linears import X, model
from tests.support.cases import few

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


@torch.no_grad()
def distance(small: nn.Module, dense: nn.Module) -> float:
    return float((small(X) - dense(X)).norm() / dense(X).norm())


@each
def test_the_copy_computes_the_same_with_plain_layers(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    dense = made(kind)
    before = dense(X)
    own = copied(dense)
    assert distance(own, dense) < 1e-6
    assert "blocks.0.attn.qkv (and 1 more) are made part of the weights" in caplog.text
    assert type(own.get_submodule(NAMES[0])) is nn.Linear
    assert set(own.state_dict()) == set(model(lambda layer: layer, *NAMES).state_dict())
    assert torch.equal(dense(X), before)  # and the caller's model is what it was
    assert type(dense.get_submodule(NAMES[0])) is not nn.Linear or kind in (
        "pruning mask",
        "old weight norm",
        "old spectral norm",
    )


@pytest.mark.slow
@each
def test_every_verb_takes_it(kind: str, tmp_path: Path) -> None:
    dense = made(kind)
    plain = copied(dense)
    small, report = compress(dense, [X], "best", 0.2, device="cpu")
    same, _ = compress(plain, [X], "best", 0.2, device="cpu")
    assert "fallback" not in report
    assert distance(small, same) < 1e-4
    rounded, _ = compress(dense, [X], budget="bytes=0.3", bits=(4, 8), device="cpu")
    assert distance(rounded, dense) < 0.1
    assert distance(quantize(dense, 8, [X], quantizer="gptq")[0], dense) < 0.02
    options = {
        "model_args": {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2, "init_values": 0.5}
    }
    save(small, tmp_path / "it", **options)  # type: ignore[arg-type]
    assert distance(load(tmp_path / "it", model=dense), small) == 0


@pytest.mark.parametrize("kind", ["pruning mask", "weight norm", "adapter"])
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
    with torch.no_grad():
        assert (small(images) - levit(images)).norm() < 0.5 * levit(images).norm()


@pytest.mark.slow
def test_parameters_that_were_made_in_inference_mode() -> None:
    with torch.inference_mode():
        dense = model(lambda layer: layer, *NAMES)
    small, report = compress(dense, [X], "best", 0.2, device="cpu")
    assert report["refit"]
    assert distance(small, dense) < 0.3
