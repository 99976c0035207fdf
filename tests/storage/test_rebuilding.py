"""What is saved is loaded again: arguments that the model shows, factories, dense models that are handed in; or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lowrank_vit import InputError, compress, load, load_report, quantize, save
from tests.support.cases import few
from tests.support.factories import NAME, mixer
from tests.support.models import ARGUMENTS, images, outputs, tiny

TINY = "vit_tiny_patch16_224"
SMALL = {"embed_dim": 16, "num_heads": 2}  # of a ViT that is quick


def photos(size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(6, channels, size, size, generator=torch.Generator().manual_seed(1))


def compressed(model: nn.Module, data: Tensor, recipe: str = "svd") -> nn.Module:
    return compress(model.eval(), [data], recipe, 0.05)[0]


@pytest.mark.parametrize("recipe", few(["svd", "best"], 1))
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (TINY, {"depth": 2, "img_size": 64, **SMALL}),
        (TINY, {"depth": 1, "img_size": (32, 48), "in_chans": 3, "global_pool": "avg", "class_token": False, **SMALL}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1), "num_heads": (2, 4), "img_size": 56, "embed_dim": 16}),
    ],
)
def test_arguments_that_a_model_shows_need_not_be_given(
    name: str, arguments: dict[str, Any], recipe: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **arguments)
    size = arguments["img_size"]
    data = torch.randn(6, 3, *((size, size) if isinstance(size, int) else size))
    small = compressed(model, data, recipe)
    save(small, tmp_path / "small")
    assert torch.equal(outputs(load(tmp_path / "small"), data), outputs(small, data))
    known = json.loads((tmp_path / "small" / "config.json").read_text())["model_args"]
    assert known.items() <= {key: list(v) if isinstance(v, tuple) else v for key, v in arguments.items()}.items()


HIDDEN: dict[str, tuple[dict[str, Any], str]] = {
    "a narrower MLP": ({"mlp_ratio": 2}, r"mlp.fc1' is \(16, 32\)"),
    "normalised queries": ({"qk_norm": True}, "q_norm.weight has the shape None"),
    "another activation": ({"act_layer": "relu"}, "GELU, here ReLU"),
}


@pytest.mark.parametrize(("arguments", "difference"), HIDDEN.values(), ids=HIDDEN)
def test_a_model_that_would_be_lost_is_refused(arguments: dict, difference: str, tmp_path: Path) -> None:
    model = timm.create_model(TINY, depth=1, img_size=32, **SMALL, **arguments)
    small = compressed(model, photos())
    with pytest.raises(InputError, match=rf"{difference}.* pass model_args") as refused:
        save(small, tmp_path / "small")
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    save(small, tmp_path / "small", model_args={"depth": 1, "img_size": 32, **SMALL, **arguments, "num_classes": 1000})
    assert torch.equal(outputs(load(tmp_path / "small"), photos()), outputs(small, photos()))


def test_a_factory_is_called_by_whom_allows_it_only(tmp_path: Path) -> None:
    small = compressed(mixer(depth=1, slope=0.5), images(6))
    with pytest.raises(InputError, match=r"slope 1.0, here 0.5.*pass model_args"):
        save(small, tmp_path / "small", factory=NAME, model_args={"depth": 1})
    assert list(tmp_path.iterdir()) == []
    save(small, tmp_path / "small", factory=NAME, model_args={"depth": 1, "slope": 0.5})
    for allowed in (None, "os:system", f"{NAME} "):
        with pytest.raises(InputError, match=rf"code that is not run unasked.*allow_factory='{NAME}'"):
            load(tmp_path / "small", allow_factory=allowed)
    again = load(tmp_path / "small", allow_factory=NAME)
    assert torch.equal(outputs(again, images(6)), outputs(small, images(6)))
    save(again, tmp_path / "again")  # it knows its factory
    assert torch.equal(outputs(load(tmp_path / "again", allow_factory=NAME), images(6)), outputs(small, images(6)))
    assert f'load("DIR", allow_factory="{NAME}")' in (tmp_path / "again" / "README.md").read_text()


def trained(model: nn.Module) -> nn.Module:
    """One step of a training loop of one's own."""
    optimiser = torch.optim.SGD(model.train().parameters(), 0.1)
    model(images(6)).square().sum().backward()
    optimiser.step()
    return model.eval()


@pytest.mark.parametrize("wrapped", [trained, lambda model: trained(quantize(model, 16)[0])], ids=["plain", "half"])
def test_load_train_save(wrapped: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    save(compressed(tiny(), images(6), "best"), tmp_path / "small", model_args=ARGUMENTS["vit"])
    save(load(tmp_path / "small"), tmp_path / "same")
    report, weights = load_report(tmp_path / "small"), (tmp_path / "small" / "model.safetensors").read_bytes()
    assert load_report(tmp_path / "same") == report
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == weights
    model = wrapped(load(tmp_path / "small"))
    save(model, tmp_path / "tuned")
    if wrapped is trained:
        assert torch.equal(outputs(load(tmp_path / "tuned"), images(6)), outputs(model, images(6)))
        assert load_report(tmp_path / "tuned") == {**report, "protocol": "training-free, then trained without a record"}
        again = trained(load(tmp_path / "tuned"))
        save(again, tmp_path / "twice")
        assert load_report(tmp_path / "twice") == load_report(tmp_path / "tuned")
        with pytest.raises(InputError, match="no entry"):
            save(again, tmp_path / "other", {})  # type: ignore[typeddict-item]
