"""The command distill: what it prints, saves and refuses, and that it reads no label."""

from pathlib import Path

import pytest

from lowrank_vit import compress, save
from lowrank_vit.cli import main
from lowrank_vit.models import load_model
from tests.support.commands import json_of, refused
from tests.support.distilling import PowerCutError, interrupt
from tests.support.models import images

pytestmark = pytest.mark.slow


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small, out = tmp_path / "small", tmp_path / "distilled"
    save(compress(load_model("digits_deit_small"), [images(64)], "exact", 0.4)[0], small)
    command = ["distill", str(small), "--data", "digits", "--calibration-samples", "64", "--epochs", "1"]
    with monkeypatch.context() as patched:
        interrupt(patched, 0)
        with pytest.raises(PowerCutError):
            main([*command, "--out", str(out)])
    assert not out.exists()
    capsys.readouterr()
    main([*command, "--held-out-samples", "50", "--out", str(out)])
    captured = capsys.readouterr()
    assert f"saved to {out}" in captured.out
    assert captured.err.startswith("distil ")  # one epoch needs no number
    report, before = json_of(capsys, "inspect", out), json_of(capsys, "inspect", small)
    entry = report["distillation"]
    assert report["protocol"] == "calibration-distilled"
    assert (report["params"], report["layers"]) == (before["params"], before["layers"])
    assert (entry["images"], entry["batch_size"], entry["flips"]) == (64, 20, False)
    assert (entry["lr"], entry["vector_lr"]) == (1e-5, 3e-3)
    assert entry["calibration"]["samples"] == 64
    assert entry["kl_held_out"]["after"] < entry["kl_held_out"]["before"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["distilled", "small"]
    assert json_of(capsys, "evaluate", out, "--data", "digits")["top1"] > 50
    assert "exists already" in refused(capsys, *command, "--out", out)
    eight, other = tmp_path / "eight", ("--out", tmp_path / "other")
    main(["quantize", str(out), "--bits", "8", "--out", str(eight)])
    capsys.readouterr()
    assert "then quantise that" in refused(capsys, "distill", eight, "--data", "digits", *other)
    line = refused(capsys, *command, "--learning-rate", "-1", *other)
    assert "lr" in line
    assert "mix is 0.6" in refused(capsys, *command, "--mix", "0.6", *other)
    assert not list(tmp_path.glob("*other*"))
