"""Environments in which processes cannot meet: one line each, soon; work is dealt out, the most expensive first."""

import socket
from collections.abc import Iterator

import pytest

from lowrank_vit import InputError
from lowrank_vit.runtime.launch import launch
from lowrank_vit.runtime.processes import split

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
