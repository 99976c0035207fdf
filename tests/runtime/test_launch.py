"""Processes that are started, tell each other things, and end together, with whoever started them; launchers are believed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from lowrank_vit import InputError
from lowrank_vit.compression.resume import ResumeStore
from lowrank_vit.runtime import launch as launching
from lowrank_vit.runtime.files import write_json
from lowrank_vit.runtime.launch import launch, processes_asked_for
from lowrank_vit.runtime.processes import agreed, divide_work, gathered, layout, rank_and_world, split

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
    for name, value in {"NTASKS": "6", "NNODES": "3", "STEP_ID": "0", "JOB_NAME": "array"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert processes_asked_for(None, None) == (2, 3)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")  # a shell that could start six, and has not
    assert processes_asked_for(None, None) == (1, 1)


PARENT = """
import multiprocessing, os, time
from lowrank_vit.runtime.processes import die_with_parent

def child():
    die_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)

multiprocessing.get_context("fork").Process(target=child).start()
time.sleep(60)
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and that nobody has asked after does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in Linux's /proc")
def test_a_child_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
        parent.wait()
        end = time.monotonic() + 10
        while alive(child) and time.monotonic() < end:
            time.sleep(0.01)
        still_there = alive(child)
        if still_there:
            os.kill(child, 9)
    assert not still_there


@pytest.mark.parametrize("outside", [False, True])
def test_processes_that_this_package_starts_watch_their_parent(outside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they do anything else; those of torchrun and SLURM end by these."""
    order: list[str] = []
    monkeypatch.setattr(launching, "launched_from_outside", lambda: outside)
    monkeypatch.setattr(launching, "die_with_parent", lambda: order.append("watch"))
    launching._enter(lambda: order.append("work"), None)
    assert order == (["work"] if outside else ["watch", "work"])


NOWHERE = "no-such-host.invalid"


@pytest.fixture
def taken() -> Iterator[str]:
    """A port that somebody listens to."""
    with socket.create_server(("", 0)) as server:
        yield str(server.getsockname()[1])


def environments(port: str) -> list[tuple[dict[str, str], int, str]]:
    """What is wrong, the devices asked for (0: none), and how the line begins."""
    return [
        ({"MASTER_PORT": port}, 2, f"MASTER_PORT={port} is taken by another process"),
        ({"MASTER_PORT": "x"}, 2, "MASTER_PORT='x' is not a port"),
        ({"MASTER_PORT": "70000"}, 2, "MASTER_PORT='70000' is not a port"),
        ({"GLOO_SOCKET_IFNAME": "nope0"}, 2, "GLOO_SOCKET_IFNAME=nope0: this machine has no interface 'nope0', but "),
        ({"MASTER_ADDR": NOWHERE}, 2, f"MASTER_ADDR={NOWHERE}: the host cannot be found"),
        ({"TORCHELASTIC_RUN_ID": "x"}, 0, "TORCHELASTIC_RUN_ID is set, but WORLD_SIZE is not"),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "two"}, 0, "WORLD_SIZE='two' is not a number of processes"),
        ({"SLURM_NTASKS": "four"}, 0, "SLURM_NTASKS='four' is not a number of processes"),
        ({"SLURM_NTASKS": "4"}, 0, "SLURM has room for 4 tasks, but srun has not started this process"),
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": port},
            0,
            f"MASTER_PORT={port} is taken",
        ),
    ]


def test_what_is_wrong_is_named_before_anybody_waits(taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for changes, devices, line in environments(taken):
        with monkeypatch.context() as patch:
            for name, value in changes.items():
                patch.setenv(name, value)
            with pytest.raises(InputError) as found:
                launch(print, "met", devices=devices or None)
            assert str(found.value).startswith(line)


def test_the_most_expensive_is_dealt_out_first() -> None:
    """Of 1, 2, 3, 4, 6 for two: 6, then 4 + 3, then 2 to the first (8), and 1 to the second (8)."""
    costs = {"one": 1, "two": 2, "three": 3, "four": 4, "six": 6}
    assert split(costs, 2) == [["six", "two"], ["four", "three", "one"]]
