"""The command learn: what it makes, what it refuses, and that an interrupted one goes on to the same bytes."""

from pathlib import Path

import pytest

from lowrank_vit.cli import main
from tests.cli.test_unfinished import saved
from tests.support.commands import json_of, refused
from tests.support.gradual import PowerCutError, interrupt

pytestmark = pytest.mark.slow

MODEL = ["--model", "digits_deit_small", "--data", "digits", "--workers", "0"]
FEW = ["--calibration-samples", "64", "--held-out-samples", "16", "--epochs", "2", "--learning-rate", "1e-3"]


@pytest.mark.parametrize("method", ["vtp", "losparse"])
def test_the_command(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["learn", *MODEL, *FEW, "--method", method, "--distill"]
    main([*command, "--budget", "params=0.6", "--logger", "csv", "--out", str(tmp_path / "whole")])
    captured = capsys.readouterr()
    assert f"saved to {tmp_path / 'whole'}" in captured.out
    assert f"digits_deit_small by recipe {method} (full-ft+kd)" in captured.out
    assert "on 16 images of the training: the same class" in captured.out  # it has seen all of the split
    assert "train gates, epoch 2 of 2" in captured.err
    assert "expected_params" in (tmp_path / "whole.log" / "metrics.csv").read_text().splitlines()[0]
    report = json_of(capsys, "inspect", tmp_path / "whole")
    assert 0.4 <= report["params"]["reduction"] < 0.42
    assert (report["recipe"], report["learnt"]["epochs"], report["learnt"]["lr"]) == (method, 2, 1e-3)
    if method == "losparse":
        assert f"rank 1 of 24 x 72, {report['layers'][0]['details']['row']} rows" in captured.out
    with monkeypatch.context() as patched:
        interrupt(patched, 1)
        with pytest.raises(PowerCutError):
            main([*command, "--reduction", "0.4", "--out", str(tmp_path / "small")])
    state = tmp_path / ".small.unfinished"
    assert (state / "gates" / "last.ckpt").is_file()
    assert not (tmp_path / "small").exists()
    main([*command, "--reduction", "0.4", "--out", str(tmp_path / "small")])
    assert saved(tmp_path / "small") == saved(tmp_path / "whole")
    assert not state.exists()
    capsys.readouterr()
    assert "exists already" in refused(capsys, *command, "--reduction", "0.4", "--out", tmp_path / "small")
    assert json_of(capsys, "evaluate", tmp_path / "small", "--data", "digits")["top1"] > 50
