"""Processes that were started end with the one that started them, however it died."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowrank_vit.runtime import launch

pytestmark = pytest.mark.slow

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
    monkeypatch.setattr(launch, "launched_from_outside", lambda: outside)
    monkeypatch.setattr(launch, "die_with_parent", lambda: order.append("watch"))
    launch._enter(lambda: order.append("work"), None)
    assert order == (["work"] if outside else ["watch", "work"])
