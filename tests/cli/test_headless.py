"""A model without a classifier through the verbs, in real processes: it keeps its features."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from lowrank_vit import load
from lowrank_vit.cli import main
from tests.support.commands import json_of, refused

NAME = "vit_tiny_patch16_224"
ARGUMENTS = {"in_chans": 1, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}
GIVEN = [part for key, value in ARGUMENTS.items() for part in ("--model-args", f"{key}={value}")]
FEW = ["--calibration-samples", "48", "--held-out-samples", "32"]
GENTLY = ["--vector-learning-rate", "1e-4"]
DATA = ["--data", "digits", "--workers", "0"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Those of a classifier, which a model with no classes leaves where they are."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=10, img_size=8, **ARGUMENTS)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_file(model.state_dict(), tmp_path / "tuned.safetensors")
    return tmp_path / "tuned.safetensors"


@pytest.mark.slow
def test_the_verbs(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, model = tmp_path / "small", ["--model", NAME, "--checkpoint", str(weights), *GIVEN, "--num-classes", "0"]
    main(["compress", *model, *DATA, *FEW, "--max-loss", "30", "--out", str(small)])
    text = " ".join(capsys.readouterr().out.split())
    assert "reduction % points lost" in text
    assert "agreement" not in text
    assert load(small)(torch.randn(2, 1, 8, 8)).shape == (2, 16)
    teacher = ["--checkpoint", str(weights), *DATA]
    main(["compress", *model, *DATA, *FEW, "--recipe", "svd", "--reduction", "0.4", "--out", str(tmp_path / "svd")])
    distil = ["distill", str(tmp_path / "svd"), *teacher, *FEW, "--epochs", "2", *GENTLY]
    main([*distil, "--out", str(tmp_path / "distilled")])
    assert "in shares of the features' variance: " in capsys.readouterr().out
    report = json.loads((tmp_path / "distilled" / "report.json").read_text())
    unseen = report["distillation"]["feature_error_held_out"]
    assert unseen["after"] < unseen["before"]
    assert "no classifier (num_classes is 0), so it has no accuracy" in refused(capsys, "evaluate", small, *DATA)
    main(["evaluate", str(small), *DATA, "--limit", "20", "--dense", str(weights)])
    assert "features differ from the dense model's by " in capsys.readouterr().out
    plan = json_of(capsys, "plan", *model, *DATA, "--calibration-samples", "48")
    assert (plan["recipe"], plan["currency"]) == ("best", "shares of the features' variance")
