"""Minibatch gradient descent: images pass through the frozen dense model. Only this file needs Lightning."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lowrank_vit.records.images import Batches, all_images
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import ONE_PROCESS, Hardware
from lowrank_vit.runtime.processes import agreed
from lowrank_vit.runtime.trainer import LastCheckpoint, check_resumable, make_trainer, quiet_run
from lowrank_vit.stages.compensate import Compensation, State
from lowrank_vit.stages.compensate.inputs import LayerInputs, SeededBatches, batch_loss, full_precision
from lowrank_vit.stages.compensate.solve import ADAM, Group, Solution, by_shape, check_optimizer, make_optimizer

LAST = "compensation.ckpt"
CHECKPOINTS = 10  # in a run
REMEMBERED_BYTES = 256 * 2**20  # for the inputs of all layers, so that a small model runs once, not at every step


class LayerwiseCompensation(LightningModule):
    """Descend by (11)(12), one step per batch, for all layers at once: section 3.3 of the paper.

    The paper says mini-batch gradient descent, which is the ``optimizer`` ``"sgd"``; ``"adam"`` is ours, since at the
    paper's learning rate the other barely moves.

    ``A_i = X_i / ||X_i W||_F``, ``B_i = A_i R``, loss ``(1/B) sum_i ||A_i Z - B_i||_F^2``, which is (10); the paper
    prints the squared norm as divisor. One pass of the frozen dense model gives all inputs; the layers share nothing
    else: their losses are summed, and either optimiser works element by element, so this is the paper's parallel
    optimisers, one for each layer. Several processes share the images, not the layers, whose inputs take a pass through
    all layers before them: T steps of B images are T B passes, T B / P for each of P processes (16,000 of 128,000 with
    2000 steps of 64, and eight). With a share of the layers each, every process would make all T B. The model is not a
    submodule, so it is neither trained nor saved. ``batch_size`` is the total over all processes. The buffer ``curve``,
    (points, layers), is the loss of every ``record_every``-th batch, in the order of ``names``. Batches are pairs of
    ``images``, (N, C, H, W), and their indices; the layers' inputs are remembered where they are small.
    Raises ``InputError`` where the model has no linear layer of a group's name.
    """

    doing = "fit Z"
    curve: Tensor

    def __init__(
        self,
        model: nn.Module,
        compensation: Compensation,
        groups: Sequence[Group],
        images: Tensor,
        *,
        steps: int = 2000,
        lr: float = 1e-3,
        optimizer: str = ADAM,
        batch_size: int = 64,
        seed: int = 0,
        record_every: int = 50,
    ) -> None:
        super().__init__()
        self.images, self._asked = images, False
        self.compensation, self.batch_size, self.record_every = compensation, batch_size, record_every
        self.layers = [group.names for group in groups]
        self.names = tuple(name for names in self.layers for name in names)
        norms = [norm for group in groups for norm in group.residual.norm(dim=(1, 2)).tolist()]
        self.save_hyperparameters({"steps": steps, "lr": lr, "optimizer": optimizer})
        self.save_hyperparameters({"batch_size": batch_size, "seed": seed})
        self.save_hyperparameters({"compensation": repr(compensation), "record_every": record_every})
        told = repr(dict(zip(self.names, norms, strict=True)))
        self.save_hyperparameters({"residuals": hashlib.sha256(told.encode()).hexdigest()[:16]}, logger=False)
        dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        self.inputs = LayerInputs(model, self.layers, dtype)
        self.residuals = [group.residual.to("cpu", dtype) for group in groups]  # not buffers: they need not be saved
        self.starts = [group.start(compensation, seed).to(torch.device("cpu"), dtype) for group in groups]
        self.z = nn.ModuleList(nn.ParameterDict(dict(state.trainable)) for state in self.starts)
        self.register_buffer("curve", torch.zeros(math.ceil(steps / record_every), len(self.names), dtype=dtype))
        self._states: list[State] = []

    def states(self) -> list[State]:
        """Return the groups' states, in their order, with the current parameters, on the module's device."""
        return [
            State(start.shape, dict(z.named_parameters()), {key: t.to(self.device) for key, t in start.fixed.items()})
            for start, z in zip(self.starts, self.z, strict=True)
        ]

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return all batches of the run from the current step on, which is one epoch to Lightning."""
        count, steps, seed = len(self.images), self.hparams["steps"], self.hparams["seed"]
        batches = SeededBatches(count, self.batch_size, steps, seed, lambda: self.trainer.global_step)
        rows = TensorDataset(self.images, torch.arange(count))
        return DataLoader(rows, batch_size=None, sampler=batches, generator=torch.Generator())

    def on_fit_start(self) -> None:
        self.inputs.model.to(self.device).eval()
        self.inputs.attach()
        self.residuals = [residual.to(self.device) for residual in self.residuals]
        self._states = self.states()

    def on_fit_end(self) -> None:
        self.inputs.detach()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make one optimiser for all layers; one, so that a step counts once."""
        return make_optimizer(self.hparams["optimizer"], self.parameters(), self.hparams["lr"])

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the sum of all layers' losses; of several processes, this one's share of the batch's mean."""
        images, indices = batch
        if not self._asked:  # at the first step, with the run's precision in force
            self.inputs.remember(self.images, REMEMBERED_BYTES, self.batch_size)
            self._asked = True
        known = images if self.inputs.memory is None else indices
        seen = self.inputs(known, self.batch_size / self.trainer.world_size)
        with full_precision(self.device):
            losses = torch.cat(
                [
                    batch_loss(self.compensation, state, residual, inputs)
                    for inputs, state, residual in zip(seen, self._states, self.residuals, strict=True)
                ]
            )
        if self.global_step % self.record_every == 0:
            self._record(losses.detach().clone())
        return losses.sum()

    def _record(self, losses: Tensor) -> None:
        """Keep the losses, averaged over processes, and log them."""
        losses = self.trainer.strategy.reduce(losses, reduce_op="mean")
        self.curve[self.global_step // self.record_every] = losses
        if not self.loggers:
            return
        metrics = {f"compensation/{name}": loss for name, loss in zip(self.names, losses.tolist(), strict=True)}
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.global_step)


class _Checkpoints(LastCheckpoint):
    """Save the state every few steps."""

    def __init__(self, path: Path, every: int) -> None:
        super().__init__(path)
        self.every = every

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Save every few steps, as at the end of an epoch."""
        if trainer.global_step % self.every == 0:
            self.on_train_epoch_end(trainer, pl_module)


def compensate_minibatch(
    model: nn.Module,
    compensation: Compensation,
    residuals: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    images: Tensor | Batches,
    *,
    steps: int = 2000,
    lr: float = 1e-3,
    optimizer: str = ADAM,
    batch_size: int = 64,
    seed: int = 0,
    record_every: int = 50,
    hardware: Hardware = ONE_PROCESS,
    progress: bool = True,
    checkpoint_dir: str | Path | None = None,
    loggers: Logger | list[Logger] | None = None,
) -> dict[str, Solution]:
    """Find Z of every layer by minibatches; the result does not depend on the number of processes, up to rounding.

    model: the dense one, whose layers have the names of ``residuals``; it comes back as it was. residuals: name to
    ``R = W - U V^T``, (n, d); moments: name to M, (n, n), for the support of sparse kinds and the losses reported.
    images: (N, C, H, W), or batches, which are loaded into memory; what is drawn of them is seeded, at most N at a time.
    With ``checkpoint_dir`` an interrupted run resumes after the last finished tenth of its steps.
    Raises ``InputError`` for bad settings, names that do not fit, or a checkpoint of another run.
    """
    images = all_images(images)
    batch_size = min(batch_size, len(images))
    if min(steps, record_every) < 1 or lr <= 0 or batch_size < hardware.processes:
        raise InputError(f"steps={steps}, lr={lr}, batch_size={batch_size}: positive, with an image for each device")
    check_optimizer(optimizer)
    groups = list(by_shape(residuals, moments))
    settings: dict[str, Any] = {"steps": steps, "lr": lr, "batch_size": batch_size, "seed": seed}
    settings |= {"optimizer": optimizer, "record_every": record_every}
    module = LayerwiseCompensation(model, compensation, groups, images, **settings)
    last = None if checkpoint_dir is None else Path(checkpoint_dir) / LAST
    resumed = last if last is not None and agreed(last.exists()) else None
    if resumed is not None:
        check_resumable(module, resumed, dict(module.named_parameters()))
    with quiet_run(None, model):
        trainer = make_trainer(
            hardware,
            progress=progress,
            callbacks=[] if last is None else [_Checkpoints(last, math.ceil(steps / CHECKPOINTS))],
            max_steps=steps,
            max_epochs=1,
            logger=loggers or False,
            enable_checkpointing=last is not None,
        )
        try:
            trainer.fit(module, ckpt_path=resumed, weights_only=True)
        finally:
            module.inputs.detach()
    solutions = _collect(module, groups)
    return {name: solutions[name] for name in residuals}


def _collect(module: LayerwiseCompensation, groups: Sequence[Group]) -> dict[str, Solution]:
    solutions: dict[str, Solution] = {}
    curves = module.curve.split([len(group.names) for group in groups], dim=1)
    for group, state, curve in zip(groups, module.states(), curves, strict=True):
        points = [(index * module.record_every, losses) for index, losses in enumerate(curve)]
        solutions |= group.solutions(module.compensation, state, points)
    return solutions
