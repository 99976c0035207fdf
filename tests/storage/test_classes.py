"""What is written says how many classes the model has, not timm's pretrained weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import lowrank_vit
from lowrank_vit.cli.train_folder import dense_model
from lowrank_vit.stages.export.export import preprocessing


@pytest.mark.parametrize("replaced", [False, True])
def test_a_model_of_37_classes_says_37(tmp_path: Path, replaced: bool) -> None:
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=1000 if replaced else 37, **arguments)
    if replaced:
        model.head = nn.Linear(16, 37)
    small, report = lowrank_vit.compress(model, [torch.randn(8, 3, 32, 32)], "svd", 0.1, device="cpu")
    lowrank_vit.save(small, tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 37
    loaded = lowrank_vit.load(tmp_path / "small")
    assert json.loads(preprocessing(loaded))["num_classes"] == json.loads(preprocessing(model))["num_classes"] == 37
    torch.save(model.state_dict(), tmp_path / "dense.pth")
    dense = dense_model(tmp_path / "small", {**report, "model": "vit_tiny_patch16_224"}, tmp_path / "dense.pth")
    assert dense.head.out_features == 37
