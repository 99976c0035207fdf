"""A fine-tuned model through the verbs: its classes, its image size and its arguments stay its own."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from lowrank_vit import load
from lowrank_vit.cli import main
from tests.support.commands import json_of, refused

pytestmark = pytest.mark.slow

NAME = "vit_tiny_patch16_224"
ARGUMENTS = {"in_chans": 1, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}
GIVEN = [part for key, value in ARGUMENTS.items() for part in ("--model-args", f"{key}={value}")]


def test_compress_distil_and_tune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten classes and 8 pixels are inferred; the teacher is made with the folder's own arguments."""
    torch.manual_seed(0)
    weights, small = tmp_path / "tuned.safetensors", tmp_path / "small"
    save_file(timm.create_model(NAME, num_classes=10, img_size=8, **ARGUMENTS).state_dict(), weights)
    model = ["--model", NAME, "--checkpoint", str(weights), *GIVEN]
    data = ["--data", "digits", "--workers", "0"]
    few = ["--calibration-samples", "16", "--held-out-samples", "8"]
    main(["compress", *model, *data, *few, "--recipe", "svd", "--reduction", "0.3", "--out", str(small)])
    assert load(small)(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    teacher = ["--teacher-checkpoint", str(weights), *data]
    main(["distill", str(small), *teacher, *few, "--epochs", "1", "--out", str(tmp_path / "distilled")])
    main(["finetune", str(small), *teacher, "--distill", "--epochs", "1", "--out", str(tmp_path / "both")])
    capsys.readouterr()
    assert json_of(capsys, "evaluate", *model, "--data", "digits", "--limit", 20)["n"] == 20
    assert json_of(capsys, "evaluate", tmp_path / "both", "--data", "digits", "--limit", 20)["n"] == 20
    assert "not 10: pass the fine-tuned" in refused(capsys, "distill", small, *data, "--out", tmp_path / "without")
    assert "go with --model" in refused(capsys, "evaluate", small, *data, "--num-classes", 9)
    assert "'depth' is not KEY=VALUE" in refused(capsys, "evaluate", *data, "--model-args", "depth")
