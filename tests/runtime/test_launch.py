"""Processes that are started, tell each other things, and end together; launchers are believed."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lowrank_vit import InputError
from lowrank_vit.compression.resume import ResumeStore
from lowrank_vit.runtime.files import write_json
from lowrank_vit.runtime.launch import launch, processes_asked_for
from lowrank_vit.runtime.processes import agreed, divide_work, gathered, layout, rank_and_world

CPU = torch.device("cpu")


def work_on(names: Sequence[str]) -> dict[str, tuple[int, torch.Tensor]]:
    if "bad" in names:
        raise InputError("layer 'bad' cannot be decomposed")
    return {name: (rank_and_world()[0], torch.full((2,), float(len(name)))) for name in names}


def talk(folder: Path) -> str:
    rank, world = rank_and_world()
    costs = {"a": 1.0, "bbbb": 5.0, "cc": 3.0, "ddd": 3.0}
    found = divide_work(costs, work_on, CPU)
    assert list(found) == list(costs)
    assert all(tensor.tolist() == [len(name)] * 2 for name, (_, tensor) in found.items())
    owners = {name: owner for name, (owner, _) in found.items()}
    with pytest.raises(InputError, match="layer 'bad'"):  # in every process
        divide_work({"a": 1.0, "bad": 2.0}, work_on, CPU)
    kept = ResumeStore(folder, "key", CPU)
    first = kept("phase", lambda: {"by": rank})
    again = kept("phase", lambda: pytest.fail("it was kept"))
    print(f"process {rank} speaks")
    told = {"owners": owners, "agreed": agreed(rank + 7), "gathered": gathered(rank), "layout": layout()}
    return repr((told, first, again, world))


@pytest.mark.slow
def test_what_processes_tell_each_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = launch(talk, tmp_path, devices=2, accelerator="cpu")
    owners = {"a": 0, "bbbb": 0, "cc": 1, "ddd": 1}
    expected = {"owners": owners, "agreed": 7, "gathered": [0, 1], "layout": (2, 1)}
    assert told == repr((expected, {"by": 0}, {"by": 0}, 2))
    assert capfd.readouterr().out == "process 0 speaks\n"
    assert [path.name for path in tmp_path.iterdir()] == ["phase-key.pt"]


def die(folder: Path) -> None:
    if rank_and_world()[0] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(300)
    write_json(folder / "survived.json", {})


def refuse() -> None:
    raise InputError("the images are broken")


@pytest.mark.slow
def test_a_process_that_dies_or_refuses_ends_the_others_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"process 1 terminated with signal SIGKILL, perhaps .* is kept"):
        launch(die, tmp_path, devices=2, accelerator="cpu")
    assert not (tmp_path / "survived.json").exists()
    with pytest.raises(InputError, match=r"^the images are broken$"):
        launch(refuse, devices=2, accelerator="cpu")


def test_launchers_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes_asked_for(None, None) == (1, 1)
    assert processes_asked_for(3, None) == (3, 1)
    with pytest.raises(InputError, match="torchrun or srun"):
        processes_asked_for(2, 2)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert processes_asked_for(None, None) == processes_asked_for(4, 2) == (4, 2)
    with pytest.raises(InputError, match="4 processes on 2 machines were started, but 8 devices on 1"):
        processes_asked_for(8, 1)
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name)
    for name, value in {
        "SLURM_NTASKS": "6",
        "SLURM_NNODES": "3",
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_NAME": "array",
    }.items():
        monkeypatch.setenv(name, value)
    assert processes_asked_for(None, None) == (2, 3)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")  # a shell that could start six, and has not
    assert processes_asked_for(None, None) == (1, 1)
