"""Plant one mistake at a time in a copy of the checkout, and say whether the tests notice: ``python -m tests.mutants``.

Of every fault: ``dead``, where one of its tests fails or does not end; ``survived``, where all pass; ``broken``, where
its text is not in the file once, or its tests cannot be run: then the entry is out of date. Libraries are imported once,
and every trial is a process forked from there, so that it takes as long as its tests do. It takes a Unix.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mutants.table import Fault, faults
from tests.support.sources import ROOT

FORK = multiprocessing.get_context("fork")
LIBRARIES = ("torch", "torchvision", "timm", "lightning.pytorch", "torchmetrics", "hypothesis")
LIMIT = 180  # seconds for the tests of one fault
SHARE = 0.95  # of the faults should die
TIMED_OUT = 124  # as timeout(1) has it


def copy_checkout() -> Path:
    """Copy the files that git knows or would take, into a new folder."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    copy = Path(tempfile.mkdtemp(prefix="mutants-"))
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


def _tests_in(copy: Path, tests: Sequence[str], log: Path) -> None:
    """Become the process of a trial: run the tests against the copy, and exit with pytest's code."""
    os.setsid()
    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(copy)
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "lowrank_vit", "experiments")]:
        del sys.modules[name]
    sys.path[:] = [str(copy), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
    os.environ["PYTHONPATH"] = str(copy)
    # a fault of the same length, planted within the same second, would be taken for the file that is compiled already
    sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
    code = pytest.main(["-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests])
    sys.stdout.flush()
    os._exit(int(code))


def run_tests(copy: Path, tests: Sequence[str], limit: float | None) -> tuple[int, str]:
    """Run tests in a process of their own; return pytest's exit code, or ``TIMED_OUT``, and what it printed."""
    log = copy / "mutants.log"
    process = FORK.Process(target=_tests_in, args=(copy, tests, log))
    process.start()
    process.join(limit)
    code = process.exitcode
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it has started and left behind
    process.kill()
    process.join()
    return TIMED_OUT if code is None else code, log.read_text(errors="replace") if log.exists() else ""


def judge(fault: Fault, copy: Path, limit: float) -> tuple[str, str]:
    """Plant a fault, run its tests, take it out again; return the verdict and, of what is broken, why."""
    if fault.occurrences(copy) != 1:
        return "broken", f"its text is there {fault.occurrences(copy)} times"
    path = copy / fault.file
    sound, faulty = path.read_text(encoding="utf-8"), fault.planted(copy)
    path.write_text(faulty, encoding="utf-8")
    try:
        code, output = run_tests(copy, fault.tests, limit)
    finally:
        path.write_text(sound, encoding="utf-8")
    if code in (pytest.ExitCode.TESTS_FAILED, TIMED_OUT):
        return "dead", ""
    if code == pytest.ExitCode.OK:
        return "survived", ""
    return "broken", "\n".join(output.splitlines()[-3:])


def _make_copy(folders: multiprocessing.SimpleQueue[str]) -> None:
    """Give this worker a copy of its own."""
    global COPY
    COPY = copy_checkout()
    folders.put(str(COPY))


def _judge_here(fault: Fault, limit: float) -> tuple[str, str]:
    return judge(fault, COPY, limit)


def trials(chosen: Sequence[Fault], jobs: int, limit: float) -> dict[str, int]:
    """Judge all faults, print a line for each, and count the verdicts."""
    counts = {"dead": 0, "survived": 0, "broken": 0}
    folders = FORK.SimpleQueue()
    try:
        with ProcessPoolExecutor(jobs, FORK, _make_copy, (folders,)) as pool:
            verdicts = pool.map(_judge_here, chosen, [limit] * len(chosen))
            for fault, (verdict, reason) in zip(chosen, verdicts, strict=True):
                counts[verdict] += 1
                print(f"{verdict:8}  {fault}" + (f"\n{reason}" if reason else ""), flush=True)
    finally:
        while not folders.empty():
            shutil.rmtree(folders.get(), ignore_errors=True)
    return counts


def sound(chosen: Sequence[Fault]) -> bool:
    """Say whether all tests pass where nothing is planted; else no verdict would mean anything."""
    copy = copy_checkout()
    try:
        code, output = run_tests(copy, sorted({test for fault in chosen for test in fault.tests}), None)
    finally:
        shutil.rmtree(copy)
    if code:
        print(output, file=sys.stderr)
    return not code


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument(
        "--only", type=_pattern, default="", metavar="REGEX", help="faults whose line matches this expression"
    )
    parser.add_argument("--list", action="store_true", help="print the faults, and their tests, and plant none")
    parser.add_argument("--jobs", type=int, default=1, help="how many to try at a time (1)")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds for the tests of one fault ({LIMIT})")
    options = parser.parse_args()
    chosen = [fault for fault in faults() if options.only.search(str(fault))]
    if options.list:
        for fault in chosen:
            print(fault, *fault.tests, sep="\n    ")
        return 0
    if not chosen:
        parser.error(f"no fault's line has {options.only.pattern!r}: --list shows them")
    for name in LIBRARIES:
        __import__(name)
    if not sound(chosen):
        print("the tests fail without any fault: mend them first", file=sys.stderr)
        return 2
    counts = trials(chosen, options.jobs, options.limit)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()), f"of {len(chosen)}")
    return 0 if counts["dead"] >= SHARE * len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
