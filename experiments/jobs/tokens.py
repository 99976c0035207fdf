"""Let the model of a job hand on fewer tokens."""

from typing import Any

from torch import nn

from experiments.jobs.ledger import Ledger
from experiments.jobs.task import CHECKPOINTS, Task
from experiments.jobs.train_compressed import learning_options
from lowrank_vit import fewer_tokens
from lowrank_vit.data import ImageData
from lowrank_vit.records.images import Images


def with_fewer_tokens(task: Task, model: nn.Module, data: ImageData, ledger: Ledger, run: Any) -> nn.Module:
    """Return a dense or compressed model with fewer tokens, within ``job.tokens``; its report goes to the ledger.

    A rule that learns does so on the calibration images or, for ``job.gradual_epochs``, on labelled ones.
    """
    job, learning = task.job, dict[str, Any]()
    if job.learns_tokens and job.gradual_epochs:
        training = {**learning_options(task, job.gradual_epochs, ledger, run), "lr": job.lr}
        learning = {"learn_on": data, "training": training}
    elif job.learns_tokens:
        images = Images(data.calibration_dataloader(), data.calibration_fingerprint, data.calibration_record)
        training = {"seed": job.seed, "progress": False, "checkpoint_dir": task.own_folder / CHECKPOINTS / "tokens"}
        learning = {"learn_on": images, "training": training}
    small: Any
    with ledger.stage("tokens", f"fewer tokens by {job.tokens['rule']}"):
        small = fewer_tokens(model, **job.tokens, **learning)
    ledger.keep("report", small.compression_report)
    return small
