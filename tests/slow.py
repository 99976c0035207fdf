"""Run the slow tests, each file in a process of its own, two at a time: ``python -m tests.slow [PATH...]``.

One process for all grows by gigabytes. The processes are forks of this one, which has imported the large libraries:
starting afresh for every file costs more than many of them compute. Libraries that start threads when they are imported
(onnxruntime, OpenVINO) are left to the forks, since a fork has no threads but its own.
"""

import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

import pytest

LIBRARIES = (
    "datasets", "diffusers", "lightning.pytorch", "matplotlib.pyplot", "sklearn.datasets", "timm", "torchmetrics",
    "transformers", "wandb", "experiments.runner.campaign", "lowrank_vit.methods.best",
)  # fmt: skip
# faulthandler's own stack for signals is left out: processes have died of a signal that the kernel sent on one
OPTIONS = ["-q", "-W", "ignore", "--timeout-method=thread", "-p", "no:faulthandler", "-m", "slow"]
FILE = re.compile(r"^(tests/\S+\.py): \d+$", re.MULTILINE)


def names(paths: list[str]) -> list[str]:
    """List the files that hold slow tests; import the libraries meanwhile."""
    command = [sys.executable, "-m", "pytest", "-q", "-q", "--collect-only", "-m", "slow", *paths]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listing:
        for library in LIBRARIES:
            importlib.import_module(library)
        listed, _ = listing.communicate()
    if listing.returncode:
        sys.exit(listed)
    return FILE.findall(listed)


def start(name: str, folder: Path) -> tuple[int, BinaryIO]:
    """Fork a process that runs one file and writes to a temporary file; return its number, and that file.

    It ends without what is due at this process's exit, such as removing the folders that libraries made on import.
    """
    output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
    sys.stdout.flush()
    if (number := os.fork()) == 0:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        status = 1
        try:
            status = pytest.main([*OPTIONS, f"--basetemp={folder / name.replace('/', '.')}", name])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return number, output


def main(folder: Path) -> int:
    """Run all, with their temporary files in ``folder``.

    One that dies of a signal runs once more: on one virtual machine processes died so while they slept.
    """
    files = names(sys.argv[1:])
    waiting, again, running, failed = files[::-1], set(), {}, []
    seconds: dict[str, float] = {}
    while waiting or running:
        while waiting and len(running) < 2:
            name = waiting.pop()
            number, output = start(name, folder)
            running[number] = (name, output)
        number, ended, used = os.wait3(0)
        name, output = running.pop(number)
        seconds[name] = used.ru_utime + used.ru_stime
        output.seek(0)
        sys.stdout.write(output.read().decode(errors="replace"))
        output.close()
        status = os.waitstatus_to_exitcode(ended)
        if status < 0:
            print(f"\n{name} died of {signal.Signals(-status).name}", flush=True)
        if status < 0 and name not in again:
            again.add(name)
            waiting.append(name)
        elif status:
            failed.append(name)
    slowest = sorted(seconds, key=seconds.__getitem__)[:-11:-1]
    said = ", ".join(f"{name} {seconds[name]:.0f}" for name in slowest)
    print(f"CPU seconds: {sum(seconds.values()):.0f} in all, most of them in {said}")
    print("slow tests:", f"failed in {', '.join(failed)}" if failed else f"{len(files)} files passed")
    return bool(failed)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        code = main(Path(temporary))
    sys.exit(code)
