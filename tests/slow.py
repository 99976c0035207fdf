"""Run the slow tests, each file in a process of its own, two at a time: ``python -m tests.slow``.

One process for all grows by gigabytes. The processes are forks of this one, which has imported the libraries and the
tests: starting afresh for every file costs more than many of them compute.
"""

import contextlib
import io
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

import pytest

OPTIONS = ["-q", "-W", "ignore", "--timeout-method=thread", "-m", "slow"]


class Files:
    """Collect the names of the files that hold slow tests, in their order."""

    names: list[str]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Keep each file's name once."""
        self.names = list(dict.fromkeys(item.nodeid.split("::")[0] for item in session.items))


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
    files, listed = Files(), io.StringIO()
    with contextlib.redirect_stdout(listed):
        status = pytest.main(["-q", "-q", "--collect-only", "-m", "slow", *sys.argv[1:]], plugins=[files])
    if status:
        print(listed.getvalue())
        return status
    waiting, again, running, failed = files.names[::-1], set(), {}, []
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
        if status < 0 and name not in again:
            print(f"{name} died of {signal.Signals(-status).name}: once more", flush=True)
            again.add(name)
            waiting.append(name)
        elif status:
            failed.append(name)
    slowest = sorted(seconds, key=seconds.__getitem__)[:-11:-1]
    said = ", ".join(f"{name} {seconds[name]:.0f}" for name in slowest)
    print(f"CPU seconds: {sum(seconds.values()):.0f} in all, most of them in {said}")
    print("slow tests:", f"failed in {', '.join(failed)}" if failed else f"{len(files.names)} files passed")
    return bool(failed)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        code = main(Path(temporary))
    sys.exit(code)
