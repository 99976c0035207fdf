"""What all trainings share: the schedule, and a run under Lightning that can be interrupted."""

import logging
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import Hardware, derived_seed, reseed
from lowrank_vit.runtime.processes import agreed, rank_and_world
from lowrank_vit.runtime.trainer import LastCheckpoint, check_resumable, make_trainer

logger = logging.getLogger(__name__)
LAST = "last.ckpt"
ORDER = 1  # the stream of random numbers, of one seed, that shuffles images


def cosine(step: int, steps: int) -> float:
    """Return the factor of the learning rate: 1 at step 0, 0 from the last step on."""
    return 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))


def warm_up_cosine(step: int, steps: int, warm_up: float) -> float:
    """Return the factor of the learning rate: a linear rise over the share ``warm_up`` of the steps, then ``cosine``."""
    rising = int(warm_up * steps)
    return (step + 1) / (rising + 1) if step < rising else cosine(step - rising, steps - rising)


class Start:
    """Keep the weights that a training starts from, to restore them where unseen images show that it did harm."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def restore(self, model: nn.Module, before: float, after: float) -> None:
        """Put the weights back, and log why: the divergence on unseen images, ``before`` and ``after``."""
        model.load_state_dict(self._weights)
        if rank_and_world()[0] == 0:
            logger.warning(
                "the divergence on unseen images rose from %.4f to %.4f, so the weights stay as they were before: "
                "train on more images, for fewer epochs, or at a lower learning rate",
                before,
                after,
            )


class SeededTraining(LightningModule):
    """Train some parameters of a model, perhaps with a teacher; random numbers depend on seed, epoch and rank.

    Freezes the other parameters. The teacher is in no checkpoint and in no count. The subclass saves its
    hyperparameters, ``seed`` among them.
    Raises ``InputError`` where the teacher is the model, and for float16.
    """

    doing: ClassVar[str] = "train"  # in the words of the progress bar

    def __init__(self, model: nn.Module, teacher: nn.Module | None, trained: Collection[str]) -> None:
        super().__init__()
        if teacher is model:
            raise InputError("the teacher and the student are the same object: pass a separate dense model")
        self.model = model
        # in a tuple, so that it is not a submodule: not saved, not counted, not trained
        self._teacher: tuple[nn.Module, ...] = () if teacher is None else (teacher,)
        self._first_epoch = True
        self.trained = frozenset(trained)
        for name, parameter in model.named_parameters():
            if parameter.dtype == torch.float16 and name in self.trained:
                raise InputError(
                    f"{name} is float16, whose gradients vanish or overflow: call model.float() to train it"
                )
            parameter.requires_grad_(name in self.trained)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters, in the model's order."""
        return [parameter for name, parameter in self.model.named_parameters() if name in self.trained]

    def counts(self) -> dict[str, Any]:
        """Count the parameters, and those that are trained, for a report."""
        trained, parameters = (
            sum(parameter.numel() for parameter in group)
            for group in (self.trained_parameters(), self.model.parameters())
        )
        return {"trained_parameters": trained, "parameters": parameters, "trainable_share": trained / parameters}

    def whole_batches(self, *tensors: Tensor) -> DataLoader[tuple[Tensor, ...]]:
        """Return batches of the tensors' rows, shuffled by (seed, epoch); an incomplete last one is left out of its epoch.

        A batch is ``batch_size`` rows over all processes. Raises ``InputError`` where they cannot share it evenly.
        """
        rows, world = TensorDataset(*tensors), self.trainer.world_size
        batch = min(self.hparams["batch_size"], len(rows))
        if batch % world:
            raise InputError(f"a batch of {batch} images cannot be shared by {world} processes: change batch_size")
        seed = derived_seed(self.hparams["seed"], ORDER)
        sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(
            rows, world, self.global_rank, seed=seed, drop_last=True
        )
        return DataLoader(rows, batch // world, sampler=sampler, drop_last=True, generator=torch.Generator())

    def adamw(
        self, groups: list[dict[str, Any]], factor: Callable[[int, int], float] = cosine, **settings: Any
    ) -> OptimizerLRSchedulerConfig:
        """Make AdamW over groups of parameters; ``factor(step, steps)`` multiplies the learning rates, step by step."""
        return self.scheduled(torch.optim.AdamW(groups, **settings), factor)

    def scheduled(self, optimizer: Optimizer, factor: Callable[[int, int], float]) -> OptimizerLRSchedulerConfig:
        """Multiply the optimizer's learning rates by ``factor(step, steps)``, step by step."""
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, lambda step: factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        for teacher in self._teacher:
            teacher.to(self.device).eval()

    def on_train_epoch_start(self) -> None:
        """Seed random numbers by seed, epoch and rank alone, so that a resumed run draws the same.

        Lightning makes the iterator of the first epoch it runs before it tells the sampler the epoch, and before this
        hook, so loader workers would start on the order of epoch 0. That iterator is made again; later ones need not be.
        """
        reseed(self.hparams["seed"], self.current_epoch, self.global_rank)
        if self._first_epoch:
            iter(self.trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]  # set before any epoch
            self._first_epoch = False


def run_record(hardware: Hardware, **more: Any) -> dict[str, Any]:
    """Return what a training's result depends on besides its hyperparameters, for its record."""
    return {"precision": hardware.precision, "processes": hardware.processes, **more}


def train(
    module: SeededTraining,
    data_module: LightningDataModule | None = None,
    *,
    epochs: int,
    checkpoint_dir: str | Path | None,
    resume: bool,
    loggers: Logger | list[Logger] | None,
    hardware: Hardware,
    **options: Any,
) -> None:
    """Train ``module``, on its own images without a data module; ``options`` are those of ``make_trainer``.

    With ``checkpoint_dir`` each epoch ends in ``last.ckpt``, from which a later call continues.
    Raises ``InputError`` for bad settings, or a checkpoint of another run.
    """
    last = None if checkpoint_dir is None else Path(checkpoint_dir) / LAST
    resumed = last if resume and last is not None and agreed(last.exists()) else None
    if resumed is not None:
        check_resumable(module, resumed, {f"model.{name}" for name in module.trained})
    trainer = make_trainer(
        hardware,
        callbacks=[] if last is None else [LastCheckpoint(last)],
        max_epochs=epochs,
        logger=loggers or False,
        enable_checkpointing=last is not None,
        log_every_n_steps=10,
        **options,
    )
    trainer.fit(module, datamodule=data_module, ckpt_path=resumed, weights_only=True)
    if not all(bool(parameter.isfinite().all()) for parameter in module.trained_parameters()):
        raise InputError(
            f"the weights are not finite after the epochs ({module.doing}): check the images, or give a lower learning rate"
        )
