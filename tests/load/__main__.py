"""Run jobs while workers, the campaign and the disk fail at random: ``python -m tests.load --jobs 200 --minutes 15``.

For so many minutes, a worker or the whole campaign is killed, or the disk is filled, and the same command is given again
where it has ended; then it is left alone until it has finished. In the end every job has one result, none was made a second
time, and there is no file that should not be there. ``--disk`` takes a folder on a small disk, such as
``mount -t tmpfs -o size=64m tmpfs FOLDER``; without it the disk is not filled.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

from experiments.jobs.results import RESULT
from experiments.runner.plan import PLAN, jobs_of
from tests.support.sources import ROOT

RECIPES = (
    "svd",
    "svd_llm",
    "fwsvd",
    "asvd",
    "afm_energy",
    "exact",
    "loss_aware",
    "vtp-taylor",
    "vbp",
    "corp",
    "ssp",
    "best",
)
KNOWN = {"compressed", "job.json", RESULT}  # what is left of a job
PAUSE = (3.0, 20.0)  # seconds between two faults
FULL = 10.0  # seconds that the disk stays full
PATIENCE = 3600.0  # seconds for what is left, undisturbed


class Campaign:
    """One command that is given again until it ends well."""

    def __init__(self, jobs: int, results: Path) -> None:
        self.results, self.starts = results, 0
        rows = [f"table_rivals/deit_b/{recipe}-{size}" for size in (25, 40, 50) for recipe in RECIPES]
        seeds = ",".join(map(str, range(-(-jobs // len(rows)))))
        options = ["--seeds", seeds, "--workers", "2", "--results", str(results), "--no-wandb"]
        self.command = [sys.executable, "-m", "experiments", "run", *rows, *options]
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # not on the disk that is filled
        self.process = self.started()

    def started(self) -> subprocess.Popen[bytes]:
        """Give the command, in a process group of its own."""
        self.starts += 1
        quiet = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        return subprocess.Popen(
            self.command, cwd=ROOT, env=quiet, start_new_session=True, stdout=self.log, stderr=self.log
        )

    @property
    def ended(self) -> bool:
        """Whether the command has ended."""
        return self.process.poll() is not None

    def workers(self) -> list[int]:
        """Process numbers of what the campaign has started."""
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        return [int(number) for number in found.stdout.split()]

    def kill(self, what: str, random: Random) -> None:
        """Kill a worker, the first process alone, or all; by a signal that cannot be caught, or by Ctrl+C's."""
        number = random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT])
        with suppress(ProcessLookupError):
            if what == "worker":
                os.kill(random.choice(self.workers() or [self.process.pid]), signal.SIGKILL)
            elif what == "campaign":
                self.process.send_signal(number)
            else:
                os.killpg(self.process.pid, signal.SIGKILL)


class Watch:
    """What results there are, and when each was written."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.seen: dict[Path, int] = {}
        self.twice: list[Path] = []

    def look(self) -> int:
        """Note new results, and those that were written again; return how many there are."""
        for path in self.results.glob(f"jobs/*/{RESULT}"):
            written = path.stat().st_mtime_ns
            if self.seen.setdefault(path, written) != written:
                self.twice.append(path)
                self.seen[path] = written
        return len(self.seen)

    def wrong(self) -> Iterator[str]:
        """Name what is not as it should be once all has ended."""
        yield from (f"{path} was written twice" for path in self.twice)
        plan = json.loads((self.results / "table_rivals" / PLAN).read_text())
        selected = {path.parent.name for path in self.seen}
        planned = {job.key for entry in plan["rows"].values() for job in jobs_of(entry)}
        yield from (f"{key} is no job of the plan" for key in selected - planned)
        for folder in self.results.glob("jobs/*"):
            yield from (f"{path} is left over" for path in folder.iterdir() if path.name not in KNOWN)
            if not (folder / RESULT).is_file():
                yield f"{folder} has no result"
        for path in self.seen:
            json.loads(path.read_text())["top1"]["after"]


def disturbed(campaign: Campaign, watch: Watch, random: Random, minutes: float, disk: Path | None) -> Counter[str]:
    """Let things fail for so long; returns how often each did."""
    faults: Counter[str] = Counter()
    kinds = ["worker", "worker", "campaign", "all", *(["disk"] if disk else [])]
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        time.sleep(random.uniform(*PAUSE))
        watch.look()
        if campaign.ended:
            if campaign.process.returncode == 0:
                break
            campaign.process = campaign.started()
            continue
        kind = random.choice(kinds)
        faults[kind] += 1
        if kind == "disk":
            fill(disk)
        else:
            campaign.kill(kind, random)
    return faults


def fill(disk: Path | None) -> None:
    """Fill the disk for a while."""
    assert disk is not None
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(2**16))
            file.flush()
    time.sleep(FULL)
    filler.unlink()


def main() -> int:
    """Run the campaign, and say what became of it."""
    parser = argparse.ArgumentParser(description="Jobs on a machine where everything goes wrong now and then.")
    parser.add_argument("--jobs", type=int, default=200, help="about how many, of the stand-ins")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disk", type=Path, metavar="FOLDER", help="on a small disk, which is filled now and then")
    args = parser.parse_args()
    random, begin = Random(args.seed), time.monotonic()
    with tempfile.TemporaryDirectory(dir=args.disk) as folder:
        campaign = Campaign(args.jobs, Path(folder) / "results")
        watch = Watch(campaign.results)
        faults = disturbed(campaign, watch, random, args.minutes, args.disk)
        while not campaign.ended or campaign.process.returncode:
            if campaign.ended:
                campaign.process = campaign.started()
            campaign.process.wait(PATIENCE)
        done, wrong = watch.look(), list(watch.wrong())
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(faults.items()))
    print(f"{done} jobs, {campaign.starts} starts, {time.monotonic() - begin:.0f} s; faults: {said}")
    print("\n".join(wrong) or "every job has one result, made once, and nothing else is left")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
