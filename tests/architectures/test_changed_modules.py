"""Modules that do not compute what their class does: by hooks, by a forward pass of their own, or around another layer."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import InputError, compress, quantize
from tests.support.cases import in_turn
from tests.support.models import distance, outputs, small_vit
from tests.support.torch_kinds import TORCH

X = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def tiny() -> Any:
    return small_vit(3, 0.08, embed_dim=48, num_heads=3)


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
    return distance(made, model, X), report, made


@pytest.fixture(scope="module")
def bare() -> Tensor:
    return outputs(small(tiny())[2], X)


PLACES = ["blocks.0.norm1", "patch_embed.proj", "blocks.0.attn", "blocks.0.mlp", "blocks.0"]


@pytest.mark.parametrize(("name", "change"), in_turn(PLACES, [hooked, before, patched]))
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
    torch.testing.assert_close(outputs(made, X), bare)
    seen.clear()
    model(X)
    assert len(seen) == 15  # the caller's own


def test_torchvision_s_parts_are_not_exchanged_where_they_are_changed() -> None:
    model: Any = TORCH["torchvision's vit"].make().float()
    hooked(model.encoder.layers[0].mlp)
    error, _, made = small(model)
    assert error < 0.2
    assert type(made.get_submodule("encoder.layers.encoder_layer_0.mlp")).__name__ == "ChangedMLPBlock"


def test_transformers_parts_are_not_exchanged_where_they_are_changed() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=5)
    model = transformers.ViTForImageClassification(config).eval()
    first = next(name for name, module in model.named_modules() if type(module).__name__ == "ViTMLP")
    hooked(model.get_submodule(first))
    made, _ = compress(model, [X], "best", 0.1, device="cpu")
    assert type(made.get_submodule(first)).__name__ == "ChangedViTMLP"
    with torch.no_grad():
        assert float((made(X).logits - model(X).logits).norm() / model(X).logits.norm()) < 0.1


@pytest.mark.parametrize("name", ["blocks.0.attn", ""])
def test_a_function_in_a_method_s_place_is_refused(name: str) -> None:
    model = tiny()
    module, own = model.get_submodule(name), model.get_submodule(name).forward
    module.forward = lambda x, **given: 2 * own(x, **given)
    for call in (lambda: compress(model, [X], "svd", 0.2), lambda: quantize(model, 8)):
        with pytest.raises(InputError, match=r"forward is a function, which a copy would call on this model"):
            call()


class Around(nn.Module):
    """Add to a layer what adapters do, in a module around it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base, self.down = layer, nn.Linear(layer.in_features, 4, bias=False)
        self.up = nn.Linear(4, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_adapters_around_every_layer_stay() -> None:
    model = tiny()
    for block in model.blocks:
        for part, name in ((block.attn, "qkv"), (block.attn, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")):
            setattr(part, name, Around(getattr(part, name)))
    error, report, _ = small(model)
    assert error < 0.1
    assert "is a Around, no linear layer" in report["fallback"]["reason"]
    rounded, _ = quantize(model, 8)
    assert distance(rounded, model, X) < 0.02
