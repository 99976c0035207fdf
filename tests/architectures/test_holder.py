"""A module of the user's that holds one known model; and models that are no models of images."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from lowrank_vit import InputError, compress, load, quantize, save
from lowrank_vit.architectures.base import family_of
from lowrank_vit.architectures.canonical import canonical
from tests.support.kinds import KINDS
from tests.support.torch_kinds import TORCH, Headed

SIZES = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 4}
X = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Nested(nn.Module):
    """A backbone two modules deep, and an output that is multiplied."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.trunk = nn.Sequential(backbone)

    def forward(self, images: Tensor) -> Tensor:
        return 2 * self.trunk(images)


class Two(nn.Module):
    """A model of images and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = timm.create_model("vit_tiny_patch16_224", **SIZES)

    def forward(self, images: Tensor, ages: Tensor) -> Tensor:
        return self.tower(images) + ages


KNOWN = {
    "vit": KINDS["vit"],
    "swin": KINDS["swin"],
    "beit": KINDS["beit"],
    "eva02": KINDS["eva02"],
    "torchvision": TORCH["torchvision's vit"],
}


@torch.no_grad()
def distance(small: nn.Module, dense: nn.Module, data: Tensor) -> float:
    return float((small(data) - dense(data)).norm() / dense(data).norm())


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("hold", [Headed, Nested])
def test_a_backbone_is_compressed_as_one(kind: str, hold: type, caplog: pytest.LogCaptureFixture) -> None:
    model, data = hold(KNOWN[kind].make()).double().eval(), KNOWN[kind].images(8)
    small, report = compress(model, [data], "best", 0.2, device="cpu")
    assert type(small) is hold
    assert "fallback" not in report
    assert report["refit"]
    assert any("hidden" in layer["details"] for layer in report["layers"])
    assert distance(small, model, data) < 0.6
    assert " inside the " in caplog.text or kind == "torchvision"  # whose blocks are known wherever they stand


def test_it_loses_no_more_than_the_backbone_alone() -> None:
    whole = Headed(KINDS["vit"].make()).double().eval()
    alone, _ = compress(whole.backbone, [X.double()], "best", 0.2, device="cpu")
    held, _ = compress(whole, [X.double()], "best", 0.2, device="cpu")
    assert distance(held.backbone, whole.backbone, X.double()) < 1.5 * distance(alone, whole.backbone, X.double())


def test_it_is_loaded_with_the_dense_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Headed(KINDS["vit"].make()).double().eval()
    small, _ = compress(model, [X.double()], "best", 0.2, device="cpu")
    save(small, tmp_path / "it")
    assert "loaded with model=dense only" in caplog.text
    assert distance(load(tmp_path / "it", model=model), small, X.double()) == 0
    with pytest.raises(InputError, match="model=dense"):
        load(tmp_path / "it")


def test_the_head_is_the_whole_model_s() -> None:
    model, data = canonical(Headed(KINDS["vit"].make()).double().eval()), X.double()
    family, seen = family_of(model), []
    *_, last = family.steps(model).values()
    last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        logits = model(data)
        torch.testing.assert_close(family.head(model, seen[0]), logits)


@pytest.mark.parametrize("recipe", ["best", "loss_aware"])
def test_a_model_of_two_inputs_is_refused_in_one_line(recipe: str) -> None:
    with pytest.raises(InputError, match=r"^Two needs images and ages, and is given images alone: "):
        compress(Two(), [X], recipe, 0.2, device="cpu")
    with pytest.raises(InputError, match="Two needs images and ages"):
        quantize(Two(), 8, [X], quantizer="gptq")


@pytest.mark.parametrize("recipe", ["best", "loss_aware"])
def test_a_pyramid_of_features_is_refused_in_one_line(recipe: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", features_only=True, **SIZES)
    with pytest.raises(InputError, match=r"a list of 3 feature maps: make it without features_only"):
        compress(model, [X], recipe, 0.2, device="cpu")
