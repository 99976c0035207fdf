"""What fine-tuning and distillation share: losses, schedule, and a run under Lightning that can be interrupted."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from lowrank_vit.checkpoints import LastCheckpoint, check_resumable
from lowrank_vit.errors import InputError
from lowrank_vit.parallel import agreed
from lowrank_vit.trainer import make_trainer, reseed

LAST = "last.ckpt"


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))``, mean over the batch. Logits: (batch, classes)."""
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def cosine(step: int, steps: int) -> float:
    """The factor of the learning rate: 1 at step 0, 0 from the last step on."""
    return 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))


class SeededTraining(LightningModule):
    """A model of which some parameters are trained, maybe with a teacher, by random numbers of seed, epoch and rank.

    Freezes the other parameters. The teacher is in no checkpoint and in no count. The subclass saves its
    hyperparameters, ``seed`` among them.
    Raises ``InputError`` where the teacher is the model.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module | None, trained: Collection[str]) -> None:
        super().__init__()
        if teacher is model:
            raise InputError("the teacher is the student: hand in the dense model as another object")
        self.model = model
        # in a tuple, so that it is no submodule: not saved, not counted, not trained
        self._teacher: tuple[nn.Module, ...] = () if teacher is None else (teacher,)
        self._first_epoch = True
        self.trained = frozenset(trained)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.trained)

    def trained_parameters(self) -> list[nn.Parameter]:
        """What the optimiser is given, in the model's order."""
        return [parameter for name, parameter in self.model.named_parameters() if name in self.trained]

    def counts(self) -> dict[str, Any]:
        """How many parameters there are and are trained, for a report."""
        trained, parameters = (
            sum(parameter.numel() for parameter in found)
            for found in (self.trained_parameters(), self.model.parameters())
        )
        return {"trained_parameters": trained, "parameters": parameters, "trainable_share": trained / parameters}

    def on_fit_start(self) -> None:
        """Put the teacher beside the model."""
        for teacher in self._teacher:
            teacher.to(self.device).eval()

    def on_train_epoch_start(self) -> None:
        """Random numbers that depend on seed, epoch and rank alone, so that a resumed run draws the same.

        Lightning makes the iterator of the first epoch it runs before it tells the sampler the epoch, and before this
        hook; loader workers would start on the order of epoch 0. So that one is made again; later ones come after it.
        """
        reseed(self.hparams["seed"], self.current_epoch, self.global_rank)
        if self._first_epoch:
            iter(self.trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]  # set before any epoch
            self._first_epoch = False


def train(
    module: SeededTraining,
    data_module: LightningDataModule | None = None,
    *,
    epochs: int,
    checkpoint_dir: str | Path | None,
    resume: bool,
    loggers: Logger | list[Logger] | None,
    **options: Any,
) -> None:
    """Train ``module``, on its own images where there is no data module; ``options`` are those of ``make_trainer``.

    With ``checkpoint_dir`` each epoch ends in ``last.ckpt``, from which a later call continues.
    Raises ``InputError`` for bad settings, or a checkpoint of another run.
    """
    last = None if checkpoint_dir is None else Path(checkpoint_dir) / LAST
    resumed = last if resume and last is not None and agreed(last.exists()) else None
    if resumed is not None:
        check_resumable(module, resumed, {f"model.{name}" for name in module.trained})
    trainer = make_trainer(
        callbacks=[] if last is None else [LastCheckpoint(last)],
        max_epochs=epochs,
        logger=loggers or False,
        enable_checkpointing=last is not None,
        log_every_n_steps=10,
        **options,
    )
    trainer.fit(module, datamodule=data_module, ckpt_path=resumed, weights_only=True)
