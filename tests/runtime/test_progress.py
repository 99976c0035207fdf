"""Progress where there is no terminal: a line at intervals, nothing of what is short."""

from __future__ import annotations

import pytest

from lowrank_vit.runtime import progress


def test_lines_tell_the_phase_and_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))  # a second for every look at it
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(progress, "EVERY", 30.0)
    assert list(progress.track(range(20), "calibrate", shown=True)) == list(range(20))
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert 2 <= len(lines) <= 4
    assert [line.split(",")[0] for line in lines][-1] == "calibrate 20 of 20"
    assert all(int(line.split()[-2]) >= 30 for line in lines)


def test_short_phases_and_unshown_ones_say_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    list(progress.track(range(20), "calibrate", shown=True))
    monkeypatch.setattr(progress, "EVERY", 0.0)
    list(progress.track(range(20), "calibrate", shown=False))
    assert capsys.readouterr().err == ""
    list(progress.track(iter(range(3)), "divergence", shown=True))
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()][-1] == "divergence 3 of 3"
