"""Workers of a loader: as many as there are cores for them, kept between epochs, and gone with their loader."""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank_vit.data import loading
from lowrank_vit.data.loading import default_workers
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import own_cores
from lowrank_vit.stages.evaluate.accuracy import evaluate
from lowrank_vit.stages.training.finetune import finetune
from tests.support.finetuning import tiny
from tests.support.hardware import on_cpu
from tests.support.image_folders import GREY, data, images, labels
from tests.support.weights import same


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


def test_workers_end_with_an_error_and_with_a_run(folder: Path) -> None:
    before = pids()
    loader = data(folder, workers=1).val_dataloader()
    file = folder / "validation" / "b" / "110.png"
    whole = file.read_bytes()
    file.write_bytes(b"junk")
    with pytest.raises(InputError, match=r"^cannot read the image [^\n]*110\.png[^\n]*$"):
        labels(loader)
    assert left(before) == []
    file.write_bytes(whole)
    assert labels(loader) == [0, 1, 1, 2, 2]  # it may be tried again
    del loader
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
    assert evaluate(model, data(folder, workers=1), **on_cpu())["n"] == 5
    assert left(before) == []


def test_a_run_of_several_epochs_is_the_same_with_kept_workers(folder: Path) -> None:
    """Though the fine-tuning that is returned holds its trainer, which holds the loaders, no worker is left."""
    before = pids()
    with_workers, without = (
        finetune(tiny(classes=3), data(folder, GREY, workers=workers), epochs=2, **on_cpu()) for workers in (1, 0)
    )
    assert same(with_workers.model, without.model)
    assert left(before) == []


def test_what_is_read_once_keeps_no_worker(folder: Path) -> None:
    before, loader = pids(), data(folder, workers=1).calibration_dataloader()
    images(loader)
    assert left(before) == []


@pytest.mark.parametrize(
    ("cores", "here", "jobs", "workers"),
    [(2, 1, 1, 2), (96, 1, 1, 16), (96, 8, 1, 12), (64, 1, 8, 8), (4, 8, 1, 1), (2, 1, 8, 1)],
)
def test_cores_are_shared(
    cores: int,
    here: int,
    jobs: int,
    workers: int,
    as_rank: Callable[[int, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the processes of a run on this machine, and by jobs side by side; no loader has more than 16."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    as_rank(0, here)
    assert default_workers(jobs) == workers


def test_what_slurm_binds_to_a_task_is_not_shared_again(
    as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    as_rank(0, 8)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    assert own_cores() == 1  # an allocation, but processes of our own
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert own_cores() == 12
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)  # torchrun has started them in one task
    assert own_cores() == 1


def test_the_default_reaches_the_loader_and_digits_need_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "own_cores", lambda: 11)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch counts the cores itself
        assert data(folder, workers=None).train_dataloader().num_workers == 11
    assert data("digits", GREY, workers=None).train_dataloader().num_workers == 0
