"""Kill a job just before each rename and each deletion: what it leaves has the bytes of a job that nothing disturbed.

The job is one of the embedded default: the recipe ``paper`` with a few steps of its Z, and two epochs of fine-tuning. It
runs in forks of this process, so that its imports are paid once; each fork is killed as any process is.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config

from experiments.jobs.job import Job
from experiments.jobs.memory import DigitsInMemory
from experiments.jobs.revisions import made_by
from experiments.jobs.run import run_job
from experiments.jobs.task import Task
from lowrank_vit import Hardware
from lowrank_vit.models import load_model
from lowrank_vit.runtime.files import TEMPORARY, cache_folder
from lowrank_vit.runtime.provenance import git_state, source_hash

MODEL = "digits_deit_small"
TIMES = ("seconds", "peak_memory_bytes")  # what differs between two runs of one job


def task(folder: Path, steps: int) -> Task:
    """The job, with its results in ``folder``."""
    sizes = {"limit": 64, "calibration_samples": 64, "held_out_samples": 32}
    job = Job(MODEL, True, "digits", "1297+500", "paper", 0.4, 0, changes={"steps": steps}, epochs=2, **sizes)  # type: ignore[arg-type]
    return Task(job, "deit_s/x", "X", "table2", folder, "digits", hardware=Hardware(accelerator="cpu"), wandb=False)


def fork(work: Callable[[], Any], cache: Path, log: Path) -> int:
    """The process that does it, with a cache of its own."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ["LOWRANK_VIT_CACHE"] = str(cache)
        work()
        code = 0
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Its exit code, -9 where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def artefacts(own: Task, cache: Path) -> dict[str, Any]:
    """All that the job leaves: bytes of the models and statistics, figures without times, and the names of all files."""
    found: dict[str, Any] = {}
    for folder in (own.folder, cache / "moments"):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".lock":
                name = str(path.relative_to(folder.parent if folder == own.folder else cache)).partition("/")[2]
                found[name] = _plain(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        # nor does the checksum of a report say the same, and that of the configuration which holds it
        times = {*TIMES, "report.json", "config.json"} if "model.safetensors" in value else TIMES
        return {name: _plain(own) for name, own in value.items() if name not in times}
    return [_plain(own) for own in value] if isinstance(value, list) else value


def die_before_second_change() -> None:
    """End this process, as SIGKILL would, before the second rename or deletion that is not of a temporary."""
    changes = 0

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def instead(path: Any, *args: Any, **options: Any) -> Any:
            nonlocal changes
            inside = options.get("dir_fd")  # how ``rmtree`` deletes
            owner = os.fspath(path) if inside is None else str(Path(f"/proc/self/fd/{inside}").readlink())
            there = inside is not None or os.path.lexists(path)
            if there and (args or not owner.endswith(TEMPORARY)):
                changes += 1
                if changes == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
            return change(path, *args, **options)

        return instead

    for name in ("replace", "unlink", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))


class Stage:
    """Folders of one job, beside those of the undisturbed one."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps, self.number = folder, steps, 0
        standins = cache_folder() / "standins"
        wait(fork(lambda: load_model(MODEL), cache_folder(), folder / "log"))  # trained where it is not yet
        shutil.copytree(
            standins, folder / "cache" / "standins", ignore=lambda _, names: [n for n in names if MODEL not in n]
        )
        model = load_model(MODEL)
        data = DigitsInMemory("digits", resolve_model_data_config(model))
        data.train_dataloader(), data.val_dataloader()  # decoded once, for all forks
        self.whole = self.run(self.fresh())

    def fresh(self) -> tuple[Task, Path]:
        """The job in a new folder, and its cache."""
        self.number += 1
        own = self.folder / str(self.number)
        shutil.copytree(self.folder / "cache", own / "cache")
        return task(own / "results", self.steps), own / "cache"

    def start(self, own: Task, cache: Path, before: Callable[[], None] | None = None) -> int:
        """The process of the job, from where it stands."""

        def work() -> None:
            if before is not None:
                before()
            run_job(own, print)

        return fork(work, cache, self.folder / "log")

    def run(self, place: tuple[Task, Path]) -> dict[str, Any]:
        """Run it to its end; what it left."""
        code = wait(self.start(*place))
        if code:
            sys.exit(f"the job failed with {code}: {(self.folder / 'log').read_text()[-2000:]}")
        return artefacts(*place)

    def check(self, place: tuple[Task, Path]) -> None:
        """Exit with what differs from the undisturbed job."""
        left = artefacts(*place)
        differ = [name for name in sorted(left.keys() | self.whole.keys()) if left.get(name) != self.whole.get(name)]
        if differ:
            sys.exit(f"these differ from an undisturbed run ({place[0].folder}): {', '.join(differ)}")


def at_every_write(stage: Stage) -> int:
    """How often the job was killed until it was whole."""
    place, kills = stage.fresh(), 0
    while (code := wait(stage.start(*place, die_before_second_change))) == -signal.SIGKILL:
        kills += 1
        if kills > 200:
            sys.exit(f"no end after {kills} kills: a step of the job is not kept ({place[0].folder})")
    if code:
        stage.run(place)
    stage.check(place)
    return kills


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="of Z's solver")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source_hash(), git_state()  # the same for all forks, whatever becomes of the source meanwhile
    made_by(task(Path(), args.steps).job)  # imports all methods before the forks
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder), args.steps)
        names = len(stage.whole)
        print(f"{at_every_write(stage)} kills, one before every write: the same {names} files, byte for byte")


if __name__ == "__main__":
    main()
