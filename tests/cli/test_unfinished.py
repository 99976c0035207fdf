"""Commands that are interrupted, started twice or short of disk: a clear line, nothing half-written, and the way on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from lowrank_vit.cli import main
from lowrank_vit.stages.gates.train_gates import GradualTraining
from lowrank_vit.storage import folder as storage
from tests.support.commands import COMPRESS, json_of, refused
from tests.support.power_cuts import PowerCutError, interrupt
from tests.support.sources import ROOT

pytestmark = pytest.mark.slow


def saved(folder: Path) -> tuple[bytes, Any]:
    """The weights, and what they are; the checksum of the report is another, since it tells seconds."""
    config = json.loads((folder / "config.json").read_text())
    del config["lowrank_vit"]["sha256"]
    return (folder / "model.safetensors").read_bytes(), config


def interrupted(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert stopped.value.code == 130
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.strip() and "caps the rank" not in line]
    assert [line for line in lines if not line.startswith(("estimate", "resuming"))] == [
        "interrupted: finished work is kept; run the same command again to continue"
    ]


def test_an_interrupted_compression_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*COMPRESS, "--recipe", "paper", "--solver", "closed_form"]
    main([*command, "--out", str(tmp_path / "whole")])
    capsys.readouterr()

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "save", stop)
        interrupted(capsys, *command, "--out", tmp_path / "small")
    state = tmp_path / ".small.unfinished"
    assert sorted(path.name.partition("-")[0] for path in state.iterdir()) == ["compensate", "decompose", "lock"]
    with monkeypatch.context() as patch:
        patch.setattr("lowrank_vit.compression.decompose.divide_work", lambda *_: pytest.fail("it was kept"))
        main([*command, "--out", str(tmp_path / "small")])
    assert saved(tmp_path / "small") == saved(tmp_path / "whole")
    assert not state.exists()
    capsys.readouterr()
    state.mkdir()  # as a process leaves it that is killed between its last two steps
    (state / "decompose-x.pt").touch()
    assert "exists already" in refused(capsys, *command, "--out", tmp_path / "small")
    assert not state.exists()


def test_of_two_processes_with_one_folder_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / ".small.unfinished"
    state.mkdir()
    with FileLock(state / "lock"):
        line = refused(capsys, *COMPRESS, "--out", tmp_path / "small")
        assert "another process is at work on" in line
        assert "another --out" in line
        assert (state / "lock").exists()
    assert "unknown recipe" in refused(capsys, *COMPRESS, "--recipe", "x", "--out", tmp_path / "small")


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*COMPRESS, "--recipe", "svd", "--held-out-samples", "0", "--out", str(tmp_path / "small")])
    arguments = ["finetune", str(tmp_path / "small"), "--data", "digits", "--epochs", "3"]
    main([*arguments, "--out", str(tmp_path / "whole")])
    arguments += ["--out", str(tmp_path / "tuned")]
    command = [sys.executable, "-m", "lowrank_vit", *arguments]
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell lets what it starts in the background, and all that this starts, ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    state = tmp_path / ".tuned.unfinished"
    end = time.monotonic() + 400  # the imports of a busy machine
    while not (state / "last.ckpt").exists() and time.monotonic() < end:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=200)
    assert running.returncode == 130, err
    assert out == ""
    assert err.count("\ninterrupted: finished work is kept") + err.startswith("interrupted: finished") == 1
    assert "Traceback" not in err
    assert (state / "last.ckpt").exists()
    main(arguments)
    assert saved(tmp_path / "tuned") == saved(tmp_path / "whole")
    assert not state.exists()


DIGITS = ["--model", "digits_deit_small", "--data", "digits", "--workers", "0"]
FEW = ["--calibration-samples", "64", "--held-out-samples", "16", "--epochs", "2", "--learning-rate", "1e-3"]


@pytest.mark.parametrize("method", ["vtp", "losparse"])
def test_learn(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["learn", *DIGITS, *FEW, "--method", method, "--distill"]
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
        interrupt(patched, GradualTraining, 1)
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
