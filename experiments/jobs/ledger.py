"""Keep what a job's stages have found on disk after every stage, and tell how they go."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from experiments.jobs.job import read_json
from experiments.jobs.task import Task, Tell
from lowrank_vit.data import ImageData
from lowrank_vit.runtime.files import write_json
from lowrank_vit.runtime.processes import agreed, is_first

EACH_EPOCH = {  # what a training measures: its name, and the words for it
    "val_top1": ("fine-tune", "top-1 {:.2f} %"),
    "expected_params": ("learn", "{:,.0f} parameters expected"),
    "train_kl": ("distil", "divergence {:.4f}"),
}


class Ledger:
    """Keep what the stages of a job have found so far, and their seconds, on disk after every stage."""

    def __init__(self, path: Path, tell: Tell) -> None:
        self.path, self.tell = path, tell
        self.found: dict[str, Any] = agreed(read_json(path) or {"seconds": {}})

    @contextmanager
    def stage(self, name: str, said: str) -> Iterator[None]:
        """Announce a stage, and add its seconds up when it ends well."""
        self.tell(said)
        start = time.perf_counter()
        yield
        seconds = self.found["seconds"]
        seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 3)

    def keep(self, name: str, value: Mapping[str, Any]) -> None:
        """Record what a stage found."""
        self.found[name] = dict(value)
        if is_first():
            write_json(self.path, self.found)


@dataclass(frozen=True)
class Running:
    """Hold what the stages of a job that runs have in common. ``run``: of Weights & Biases, or None."""

    task: Task
    data: ImageData
    ledger: Ledger
    run: Any


class EpochTeller(Logger):
    """Announce the epochs of a training as they end."""

    def __init__(self, tell: Tell, epochs: int) -> None:
        super().__init__()
        self.tell, self.epochs = tell, epochs

    name = "epochs"
    version = 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Announce what is measured once an epoch."""
        for metric, (doing, words) in EACH_EPOCH.items():
            if metric in metrics:
                epoch = f"epoch {int(metrics['epoch']) + 1} of {self.epochs}"
                self.tell(f"{doing}, {epoch}: {words.format(metrics[metric])}")

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: they are in the job."""
