"""``compress --nested`` and ``shrink`` of ``best``, as a user runs them: each a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import COMPRESS, json_of, refused

pytestmark = pytest.mark.slow


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What a command prints, and how it ends."""
    command = [sys.executable, "-m", "lowrank_vit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_best_is_opened_at_any_size_without_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, smaller = tmp_path / "small", tmp_path / "smaller"
    few = ("--calibration-samples", "48", "--held-out-samples", "16")
    made = run(*COMPRESS, *few, "--nested", "--out", small)
    assert made.returncode == 0, made.stderr
    assert "nested: `shrink` opens it at any reduction up to 0.7" in " ".join(made.stdout.split())
    assert not [path for path in tmp_path.iterdir() if path != small]  # nothing unfinished is left
    taken = run("shrink", small, "--reduction", "0.45", "--out", smaller)
    assert taken.returncode == 0, taken.stderr
    assert f"saved to {smaller}" in taken.stdout
    report: dict[str, Any] = json.loads((smaller / "report.json").read_text())
    assert report["params"]["reduction"] == pytest.approx(0.45, abs=0.01)
    assert report["refit"]["between"] == pytest.approx([0.4, 0.5], abs=0.01)
    assert json_of(capsys, "inspect", smaller)["nested"] is None
    assert json_of(capsys, "evaluate", smaller, "--data", "digits", "--limit", "64")["top1"] > 50
    out = ("--out", tmp_path / "out")
    assert "from 0 (not included) to 0.7" in refused(capsys, "shrink", small, "--reduction", 0.8, *out)
    assert "out of reach" in refused(capsys, "shrink", small, "--budget", "macs=0.01", *out)
    assert "did you mean 'macs'" in refused(capsys, "shrink", small, "--budget", "mac=0.5", *out)
    assert not (tmp_path / "out").exists()
