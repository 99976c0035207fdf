"""The paper's solver: minibatches of images through the frozen dense model; the only file here that needs Lightning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lowrank_vit.checkpoints import LastCheckpoint
from lowrank_vit.compensate import Compensation, State
from lowrank_vit.compensate.batches import SeededBatches, count_images, make_loader
from lowrank_vit.compensate.inputs import LayerInputs, batch_loss, full_precision
from lowrank_vit.compensate.solve import Group, Solution, by_shape
from lowrank_vit.errors import InputError
from lowrank_vit.parallel import agreed
from lowrank_vit.trainer import make_trainer, quiet_run

LAST = "compensation.ckpt"
CHECKPOINTS = 10  # in a run
REMEMBERED_BYTES = 256 * 2**20  # of the inputs of all layers, so that a small model is run once, not at every step


class LayerwiseCompensation(LightningModule):
    """Adam on (11)(12), one step for each batch, for all layers at once; section 3.3 of the paper.

    ``A_i = X_i / ||X_i W||_F``, ``B_i = A_i R``, loss ``(1/B) sum_i ||A_i Z - B_i||_F^2``, which is (10); the paper
    prints the squared norm as divisor. One pass of the frozen dense model gives all inputs; the layers share nothing
    else: their losses are summed, and Adam works element by element. The model is no submodule, so it is neither
    trained nor saved. ``batch_size`` is that of all processes together. The buffer ``curve``, (points, layers), is the
    loss of every ``record_every``-th batch, in the order of ``names``. With ``images``, (N, C, H, W), batches are pairs of
    images and their indices, and the layers' inputs are remembered where they are small.
    Raises ``InputError`` where the model has no linear layer of a group's name.
    """

    curve: Tensor

    def __init__(
        self,
        model: nn.Module,
        compensation: Compensation,
        groups: Sequence[Group],
        *,
        steps: int = 2000,
        lr: float = 1e-3,
        batch_size: int = 64,
        seed: int = 0,
        record_every: int = 50,
        images: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.images = images
        self.compensation, self.lr, self.batch_size, self.record_every = compensation, lr, batch_size, record_every
        self.layers = [group.names for group in groups]
        self.names = tuple(name for names in self.layers for name in names)
        norms = [norm for group in groups for norm in group.residual.norm(dim=(1, 2)).tolist()]
        self.save_hyperparameters({"steps": steps, "lr": lr, "batch_size": batch_size, "seed": seed})
        self.save_hyperparameters({"compensation": repr(compensation), "record_every": record_every})
        self.save_hyperparameters({"residual_norms": dict(zip(self.names, norms, strict=True))}, logger=False)
        dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        self.inputs = LayerInputs(model, self.layers, dtype)
        self.residuals = [group.residual.to("cpu", dtype) for group in groups]  # no buffers: they need not be saved
        self.starts = [group.start(compensation, seed).to(torch.device("cpu"), dtype) for group in groups]
        self.z = nn.ModuleList(nn.ParameterDict(dict(state.trainable)) for state in self.starts)
        self.register_buffer("curve", torch.zeros(math.ceil(steps / record_every), len(self.names), dtype=dtype))
        self._states: list[State] = []

    def states(self) -> list[State]:
        """The states of the groups, in their order, with the parameters as they are now, on the module's device."""
        return [
            State(start.shape, dict(z.named_parameters()), {key: t.to(self.device) for key, t in start.fixed.items()})
            for start, z in zip(self.starts, self.z, strict=True)
        ]

    def on_fit_start(self) -> None:
        """Put everything on the device, and listen to the inputs of the layers."""
        self.inputs.model.to(self.device).eval()
        self.inputs.attach()
        self.residuals = [residual.to(self.device) for residual in self.residuals]
        self._states = self.states()

    def on_fit_end(self) -> None:
        """Stop listening."""
        self.inputs.detach()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam for all layers, as in the paper at a constant learning rate; one, so that a step is a step."""
        return torch.optim.Adam(self.parameters(), lr=self.lr, fused=True)

    def training_step(self, batch: Tensor | Sequence[Tensor], batch_idx: int) -> Tensor:
        """The sum of all layers' losses; on several processes, this one's share of the batch's mean."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        if self.images is not None:  # at the first step: here the precision is the run's
            self.inputs.remember(self.images, REMEMBERED_BYTES, self.batch_size)
            self.images = None
        known = images if self.inputs.memory is None else batch[1]
        seen = self.inputs(known, self.batch_size / self.trainer.world_size)
        with full_precision(self.device):
            losses = torch.cat(
                [
                    batch_loss(self.compensation, state, residual, own)
                    for own, state, residual in zip(seen, self._states, self.residuals, strict=True)
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


class _Data(LightningDataModule):
    """The batches, beginning where the trainer stands."""

    def __init__(self, images: Tensor | DataLoader, steps: int, batch_size: int, seed: int) -> None:
        super().__init__()
        self.images = images
        self.batches = SeededBatches(count_images(images), batch_size, steps, seed, self._steps_done)

    def _steps_done(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_step

    def train_dataloader(self) -> Any:
        """All batches of the run: it is one epoch to Lightning."""
        return make_loader(self.images, self.batches)


class _Checkpoints(LastCheckpoint):
    """Writes the state every few steps."""

    def __init__(self, path: Path, every: int) -> None:
        super().__init__(path)
        self.every = every

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Save, as at the end of an epoch."""
        if trainer.global_step % self.every == 0:
            self.on_train_epoch_end(trainer, pl_module)


def compensate_minibatch(
    model: nn.Module,
    compensation: Compensation,
    residuals: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    images: Tensor | DataLoader,
    *,
    steps: int = 2000,
    lr: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
    record_every: int = 50,
    devices: int = 1,
    num_nodes: int = 1,
    accelerator: str = "auto",
    strategy: str | Strategy = "auto",
    precision: str | None = None,
    progress: bool = True,
    checkpoint_dir: str | Path | None = None,
    loggers: Logger | list[Logger] | None = None,
) -> dict[str, Solution]:
    """Z of every layer by the paper's solver; the same result on any number of processes, to rounding.

    model: the dense one, whose layers have the names of ``residuals``; it comes back as it was. residuals: name to
    ``R = W - U V^T``, (n, d); moments: name to M, (n, n), for the support of sparse kinds and the losses reported.
    images: (N, C, H, W), or a loader whose dataset has indices; batches are seeded, and smaller where N is.
    With ``checkpoint_dir`` an interrupted run goes on where its last tenth ended.
    Raises ``InputError`` for bad settings, names that do not fit, or a checkpoint of another run.
    """
    count = count_images(images)
    batch_size = min(batch_size, count)
    if min(steps, record_every) < 1 or lr <= 0 or batch_size < devices * num_nodes:
        raise InputError(f"steps={steps}, lr={lr}, batch_size={batch_size}: positive, and an image for each device")
    groups = list(by_shape(residuals, moments))
    settings: dict[str, Any] = {"steps": steps, "lr": lr, "batch_size": batch_size, "seed": seed}
    settings |= {"record_every": record_every, "images": images if isinstance(images, Tensor) else None}
    module = LayerwiseCompensation(model, compensation, groups, **settings)
    data = _Data(images, steps, batch_size, seed)
    last = None if checkpoint_dir is None else Path(checkpoint_dir) / LAST
    resumed = last if last is not None and agreed(last.exists()) else None
    if resumed is not None:
        _check_resumable(resumed, module)
    with quiet_run(data, model):
        trainer = make_trainer(
            devices=devices,
            num_nodes=num_nodes,
            accelerator=accelerator,
            strategy=strategy,
            precision=precision,
            progress=progress,
            callbacks=[] if last is None else [_Checkpoints(last, math.ceil(steps / CHECKPOINTS))],
            max_steps=steps,
            max_epochs=1,
            logger=loggers or False,
            enable_checkpointing=last is not None,
        )
        try:
            trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
        finally:
            module.inputs.detach()
    found = _collect(module, groups)
    return {name: found[name] for name in residuals}


def _collect(module: LayerwiseCompensation, groups: Sequence[Group]) -> dict[str, Solution]:
    """The solutions, with the curve of each layer."""
    found: dict[str, Solution] = {}
    curves = module.curve.split([len(group.names) for group in groups], dim=1)
    for group, state, curve in zip(groups, module.states(), curves, strict=True):
        points = [(index * module.record_every, losses) for index, losses in enumerate(curve)]
        found |= group.solutions(module.compensation, state, points)
    return found


def _check_resumable(path: Path, module: LayerwiseCompensation) -> None:
    """Raise ``InputError`` unless the checkpoint is of a run with the same settings and residuals."""
    try:
        settings = dict(torch.load(path, map_location="cpu", weights_only=True)["hyper_parameters"])
    except Exception as error:
        raise InputError(f"{path} is no checkpoint of a compensation ({type(error).__name__}): remove it") from None
    for name, value in module.hparams.items():
        if settings.get(name) != value:
            raise InputError(f"{path} is of a run with another {name}: give another folder or remove it")
