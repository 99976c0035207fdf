"""Environments in which processes cannot meet: one line each, soon, and no process is left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowrank_vit import InputError
from lowrank_vit.runtime.launch import launch
from lowrank_vit.runtime.processes import TIMEOUT, check_rendezvous, launched_from_outside, rank_and_world
from lowrank_vit.stages.calibrate.stream import calibrate
from tests.support.models import images, tiny

SCRIPT = """
import sys
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.launch import launch

try:
    launch(print, "met", devices=int(sys.argv[1]) or None, accelerator="cpu")
except InputError as error:
    print(error)
"""
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


@pytest.mark.slow
def test_real_processes_end_with_one_line_and_leave_none(taken: str, tmp_path: Path) -> None:
    cases, begin = environments(taken), time.monotonic()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(devices)],
            env={**os.environ, **changes},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for changes, devices, _ in cases
    ]
    for process, (changes, _, line) in zip(started, cases, strict=True):
        said, complaint = process.communicate(timeout=300)
        assert said.startswith(line), (changes, said, complaint)
        assert len(said.splitlines()) == 1
        assert not complaint
        with pytest.raises(ProcessLookupError):  # of its session
            os.killpg(process.pid, 0)
    assert time.monotonic() - begin < 30 * len(cases)


def test_where_torchrun_listens_itself_its_port_is_taken_rightly(taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", taken)
    with monkeypatch.context() as patch:
        patch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        check_rendezvous()
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "3")  # it does not listen, but calls
        check_rendezvous()
    with pytest.raises(InputError, match="taken"):
        check_rendezvous()


def test_a_lookup_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "slow.example")
    monkeypatch.setenv(TIMEOUT, "0.1")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given: time.sleep(3))
    with pytest.raises(InputError, match=r"no answer within 0\.1 s"):
        check_rendezvous()
    monkeypatch.setenv(TIMEOUT, "soon")
    with pytest.raises(InputError, match=f"{TIMEOUT}='soon' is not a number of seconds"):
        check_rendezvous()


def test_nothing_is_wrong_where_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_PORT", "MASTER_ADDR", "GLOO_SOCKET_IFNAME", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    check_rendezvous()
    assert not launched_from_outside()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", socket.if_nameindex()[0][1])
    check_rendezvous()


def calibrated(count: int) -> str:
    """Calibrate on as many images, one for each of the first processes."""
    rank, _ = rank_and_world()
    try:
        calibrate(tiny("vit"), [], (), [images(1)] if rank < count else [])
    except InputError as error:
        return str(error)
    return "calibrated"


@pytest.mark.slow
def test_fewer_images_than_processes_are_said_to_be_so() -> None:
    assert launch(calibrated, 1, devices=2, accelerator="cpu") == (
        "1 images for 2 processes: give each one at least, or fewer --devices"
    )
    assert calibrated(0).startswith("no images to calibrate on")
