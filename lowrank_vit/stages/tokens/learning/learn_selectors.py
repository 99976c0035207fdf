"""Train the token selectors of a model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lowrank_vit.modules.counting import model_hash
from lowrank_vit.runtime.hardware import ONE_PROCESS, Hardware
from lowrank_vit.runtime.lightning_run import run_record, train
from lowrank_vit.runtime.trainer import quiet_run
from lowrank_vit.stages.tokens.learning.train_selectors import SelectorTraining


def learn_selectors(
    model: nn.Module,
    teacher: nn.Module,
    *,
    images: Tensor | None = None,
    data_module: LightningDataModule | None = None,
    epochs: int = 10,
    hardware: Hardware = ONE_PROCESS,
    loggers: Logger | list[Logger] | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = True,
    seed: int = 0,
    progress: bool = True,
    **fields: Any,
) -> dict[str, Any]:
    """Train the selectors of ``model`` in place on ``images``, (N, C, H, W), or with its weights on a ``data_module``.

    ``fields`` are further ones of ``SelectorTraining``. With ``checkpoint_dir`` each epoch ends in ``last.ckpt``, from which
    a later call continues and, on the same kind and number of devices, ends with the numbers of an undisturbed run (bitwise
    on CPU). Returns how they were trained. Raises ``InputError`` for bad settings, and for a checkpoint of another run.
    """
    hardware = replace(hardware, precision=hardware.mixed_precision)
    run = run_record(hardware, inputs_sha256=model_hash(model))
    with quiet_run(data_module, model, teacher), isolate_rng():
        model.train(images is None)
        module = SelectorTraining(model, teacher, images=images, epochs=epochs, seed=seed, run=run, **fields)
        running: dict[str, Any] = {"checkpoint_dir": checkpoint_dir, "resume": resume, "loggers": loggers}
        train(module, data_module, epochs=epochs, hardware=hardware, progress=progress, **running)
        return module.describe()
