"""The figures: their jobs, what is drawn, and a whole run."""

import json
import shlex
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.jobs.job import Job, find_result
from experiments.runner import campaign
from experiments.runner.pool import run_here

pytestmark = pytest.mark.slow


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(campaign, "run_pool", lambda tasks, workers, threads, view: run_here(tasks, view))
    small = ["--seeds", "0", "--calibration-samples", "32", "--no-wandb", "--workers", "1"]
    command = ["run", "figure1/deit_b", *small, "--results", str(tmp_path)]
    for _ in range(2):  # the second time there is nothing left to run
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 0
    said = capsys.readouterr().err
    ran = json.loads((tmp_path / "figure1" / "plan.json").read_text())["command"]
    assert shlex.split(ran) == ["python", "-m", "experiments", *command]
    assert said.count("jobs to run") == 1
    assert "figure1.json, figure1.png, figure1.pdf" in said
    assert (tmp_path / "figure1" / "figure1.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figure1" / "figure1.png").stat().st_size > 20_000
    assert (tmp_path / "figure1" / "figure1.pdf").read_bytes().startswith(b"%PDF")
    content = json.loads((tmp_path / "figure1" / "figure1.json").read_text())
    (result,) = content["rows"]["deit_b/energy"]
    assert find_result(tmp_path, Job.from_json(result["job"])) == result
    assert result["measured"]["images"]["calibration"] == 32
    assert result["seconds"]["total"] > 0
    assert result["provenance"]["calibration"]["samples"] == 32
