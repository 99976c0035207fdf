"""Workers of a loader: as many as there are cores for them, kept between epochs, and gone with their loader."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.image_folders import data, images

pytestmark = pytest.mark.slow


def pids() -> set[int | None]:
    """This process's children."""
    return {child.pid for child in multiprocessing.active_children()}


def left(before: set[int | None]) -> list[str]:
    """Describe the children that are not of before and do not end within seconds: on a busy machine that takes a moment."""
    deadline = time.monotonic() + 20
    while pids() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    children = [child for child in multiprocessing.active_children() if child.pid not in before]
    return [f"{child!r}: {state(child.pid)}" for child in children]


def state(pid: int | None) -> str:
    """Return what the kernel says of a process, for the message of a failing test."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError as error:
        return str(error)
    return ", ".join(line for line in lines if line.startswith(("State", "SigBlk", "SigIgn", "SigCgt", "PPid")))


def test_kept_workers_load_what_new_ones_load(folder: Path) -> None:
    """Order and augmentation of every epoch, bit by bit, whether or not another epoch came before."""

    def epoch(loader: Any, number: int) -> torch.Tensor:
        loader.sampler.set_epoch(number)
        return images(loader)

    kept, before = data(folder, workers=2).train_dataloader(), pids()
    first, team = epoch(kept, 0), pids() - before
    assert len(team) == 2
    next(iter(kept))  # broken off
    for number in (1, 5, 2):
        assert epoch(kept, number).equal(epoch(data(folder).train_dataloader(), number))
    assert epoch(kept, 0).equal(first)
    assert pids() - before == team  # the same processes in all of them
    del kept
    assert left(before) == []
