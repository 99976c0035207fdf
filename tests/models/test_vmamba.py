"""VMamba against what the official code computes, and its sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from lowrank_vit.models import VMAMBAS
from lowrank_vit.models.checkpoints import load_checkpoint
from lowrank_vit.models.vmamba import VSSM, checkpoint_filter_fn

GOLDEN = Path(__file__).parents[1] / "golden" / "vmamba"
SHAPES: dict[str, dict[str, list[int]]] = json.loads((GOLDEN / "shapes.json").read_text())
V0 = {"ssm_ratio": 2, "state": 16, "mlp_ratio": 0, "gated": True, "early_conv": False}
SMALL: dict[str, dict[str, Any]] = {"v2": {}, "v0": V0}
PARAMETERS = {
    "vmamba_tiny_s1l8": 30_249_064,
    "vmamba_small_s2l15": 50_147_752,
    "vmamba_base_s2l15": 88_557_800,
    "vmamba_tiny_s2l5": 30_705_832,
    "vmamba_small_s1l20": 49_012_840,
    "vmamba_base_s1l20": 86_614_504,
    "vanilla_vmamba_tiny": 22_893_448,
}


def small(version: str) -> VSSM:
    """The net of which the official code made the golden files: one and two blocks, widths 16 and 32."""
    return VSSM(depths=(1, 2), dims=16, num_classes=10, **SMALL[version]).eval()


@pytest.mark.parametrize("version", SMALL)
def test_logits_are_those_of_the_official_code(version: str) -> None:
    """Its state dict loads strictly; maps are not square."""
    model, expected = small(version), load_file(GOLDEN / f"{version}_expected.safetensors")
    model.load_state_dict(load_file(GOLDEN / f"{version}.safetensors"), strict=True)
    with torch.no_grad():
        logits = model(expected["images"])
    assert (logits - expected["logits"]).abs().max() <= 5e-7


@pytest.mark.parametrize("version", SMALL)
def test_names_and_shapes_are_the_official_ones(version: str) -> None:
    state = small(version).state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == SHAPES[version]


@pytest.mark.parametrize("version", SMALL)
def test_a_file_of_the_official_names_is_a_checkpoint(version: str, tmp_path: Path) -> None:
    """Also one with the names from before the releases, and with linear layers as convolutions."""
    state, expected = (
        load_file(GOLDEN / f"{version}.safetensors"),
        load_file(GOLDEN / f"{version}_expected.safetensors"),
    )
    old = {
        name.replace("blocks.0.norm.", "blocks.0.ln_1.")
        .replace(".op.", ".self_attention.")
        .replace("classifier.", ""): tensor[..., None, None] if "out_proj" in name else tensor
        for name, tensor in state.items()
    }
    assert old.keys() != state.keys()
    for number, tensors in enumerate((state, old)):
        save_file(tensors, tmp_path / f"{number}.safetensors")
        model = small(version)
        load_checkpoint(model, tmp_path / f"{number}.safetensors", version)
        with torch.no_grad():
            assert (model(expected["images"]) - expected["logits"]).abs().max() <= 5e-7


def test_averaged_weights_go_first() -> None:
    model = small("v2")
    state, averaged = ({"classifier.head.bias": torch.full((10,), value)} for value in (1.0, 2.0))
    assert checkpoint_filter_fn({"model": state, "model_ema": averaged}, model) == averaged
    assert checkpoint_filter_fn({"model": state}, model) == state


@pytest.mark.parametrize("name", VMAMBAS)
def test_sizes(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_the_interface_is_timms() -> None:
    model, images = small("v2"), torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        features = model.forward_features(images)
        assert features.shape == (2, 5, 7, 32)
        assert model.forward_head(features, pre_logits=True).shape == (2, 32)
        torch.testing.assert_close(model.forward_head(features), model(images))
        model.reset_classifier(0)
        assert model(images).shape == (2, 32)
