"""VMamba against what the official code computes, and its sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lowrank_vit.models.vmamba import VSSM

GOLDEN = Path(__file__).parents[1] / "golden" / "vmamba"
SHAPES: dict[str, dict[str, list[int]]] = json.loads((GOLDEN / "shapes.json").read_text())
V0 = {"ssm_ratio": 2, "state": 16, "mlp_ratio": 0, "gated": True, "early_conv": False}
SMALL: dict[str, dict[str, Any]] = {"v2": {}, "v0": V0}


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
