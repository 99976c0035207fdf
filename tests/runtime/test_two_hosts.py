"""Two hosts, each a network namespace of its own: they meet, and where a process of one dies, the other says so in a line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, sys
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.launch import launch
from lowrank_vit.runtime.processes import gathered, rank_and_world

def work():
    rank, _ = rank_and_world()
    print("met", gathered(rank), flush=True)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return gathered(rank)

try:
    launch(work, accelerator="cpu")
except InputError as error:
    sys.exit(f"error: {error}")
"""
HOSTS = {"lrvtesta": "10.77.0.1", "lrvtestb": "10.77.0.2"}
PORT = "29517"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two namespaces, joined by a pair of interfaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces take root and iproute2: run this test as root, with iproute2 installed")
    try:
        for name in HOSTS:
            ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine allows no network namespaces ({error.stderr.decode().strip()})")
    try:
        first, second = (f"{name}0" for name in HOSTS)
        ip("link", "add", first, "type", "veth", "peer", "name", second)
        for name, address in HOSTS.items():
            ip("link", "set", f"{name}0", "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", f"{name}0")
            for interface in ("lo", f"{name}0"):
                ip("-n", name, "link", "set", interface, "up")
        yield
    finally:
        for name in HOSTS:
            ip("netns", "delete", name)


@pytest.mark.slow
@pytest.mark.usefixtures("hosts")
def test_a_process_that_dies_on_the_second_host_is_told_of_on_the_first(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    launcher = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", HOSTS["lrvtesta"], "--master-port", PORT]
    begin = time.monotonic()
    started = [
        subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                name,
                sys.executable,
                "-m",
                "torch.distributed.run",
                *launcher,
                "--node-rank",
                str(rank),
                str(script),
            ],
            env={**os.environ, "GLOO_SOCKET_IFNAME": f"{name}0", "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, name in enumerate(HOSTS)
    ]
    said = [process.communicate(timeout=300) for process in started]
    assert "met [0, 1]" in said[0][0]
    lines = [line for line in said[0][1].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said[0][1]
    assert lines[0].startswith("error: another process of this run has died (")
    assert HOSTS["lrvtestb"] in lines[0]
    assert "[rank0]: Traceback" not in said[0][1]
    assert "SIGKILL" in said[1][1]  # torchrun's report on the second host
    assert all(process.returncode for process in started)
    assert time.monotonic() - begin < 200
