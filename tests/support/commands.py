"""Commands in this process: what they print as JSON, and the one line that a mistake prints."""

import json
from pathlib import Path
from typing import Any

import pytest

from lowrank_vit.cli import main

STANDIN = "digits_deit_small"
COMPRESS = ["compress", "--model", STANDIN, "--data", "digits", "--reduction", "0.4", "--calibration-samples", "64"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a mistake prints."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    """What a command with ``--json`` prints."""
    main([*map(str, arguments), "--json"])
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value
