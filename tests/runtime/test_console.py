"""Consoles where there is no terminal: nothing is cut, unless ``COLUMNS`` asks for it."""

from __future__ import annotations

import pytest
from rich.table import Table

from lowrank_vit.runtime.progress import make_console
from tests.support.sources import ROOT

LAYER = "stages.0.blocks.0.attn.qkv and more " * 6


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    table = Table("layer", "params")
    for column in table.columns:
        column.no_wrap = True
    table.add_row(LAYER, "14,210")
    make_console().print(table)
    return capsys.readouterr().out


def test_a_pipe_gets_whole_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert LAYER.strip() in shown(capsys)
    assert "14,210" in shown(capsys)
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, shown(capsys).splitlines())) == 40


def test_consoles_are_made_in_one_place() -> None:
    made = [
        path.relative_to(ROOT).as_posix()
        for folder in ("lowrank_vit", "experiments")
        for path in (ROOT / folder).rglob("*.py")
        if " Console(" in path.read_text()
    ]
    assert made == ["lowrank_vit/runtime/progress.py"]
