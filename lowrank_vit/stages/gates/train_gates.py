"""Training with gates under Lightning: gates alone, towards the dense model, or gates and weights, towards labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lowrank_vit.modules.counting import model_hash
from lowrank_vit.modules.predicting import predict
from lowrank_vit.objectives import Objective
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.objectives.labels import LabelLoss
from lowrank_vit.records.costs import Cost
from lowrank_vit.records.images import images_in
from lowrank_vit.records.report import plain
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import ONE_PROCESS, Hardware
from lowrank_vit.runtime.lightning_run import SeededTraining, run_record, train
from lowrank_vit.runtime.trainer import quiet_run
from lowrank_vit.stages.gates import GradualMethod, Progress
from lowrank_vit.stages.gates.expected import Prices
from lowrank_vit.stages.gates.gates import Gate, GatedLayer, gated
from lowrank_vit.stages.gates.learnt_gates import LearntGates, make_gates, sites_of

CLASSIFICATION = Classification()
GATES_ALONE = "gates-alone"


class GradualTraining(SeededTraining):
    """Train a model with gates by its loss plus the method's penalty; AdamW, a cosine to zero, step by step.

    With ``images``, (N, C, H, W), the weights stay frozen and the gates are pulled towards the ``teacher``'s outputs; no
    label is read, and the model stays in eval mode. Without, everything is trained on a data module's labels: cross-entropy,
    of which a teacher replaces the share ``distillation_weight``. ``prices`` tell what open gates
    cost; ``target`` is the share of the parameters that shall be left. ``run`` is recorded with the hyperparameters.
    Raises ``InputError`` for values out of range.
    """

    doing = "train gates"

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        method: GradualMethod,
        gates: Mapping[str, Gate],
        prices: Prices,
        *,
        target: float,
        images: Tensor | None = None,
        epochs: int = 10,
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        label_smoothing: float = 0.1,
        distillation_weight: float = 0.5,
        batch_size: int = 64,
        objective: Objective = CLASSIFICATION,
        seed: int = 0,
        run: dict[str, Any] | None = None,
    ) -> None:
        if epochs < 1 or batch_size < 1 or not (0 < lr < math.inf and 0 <= weight_decay < math.inf and 0 < target <= 1):
            raise InputError(
                "epochs, batch_size and lr must be positive, target up to 1, and weight_decay not negative"
            )
        owned = {id(each) for gate in gates.values() for each in gate.parameters()}
        names = [name for name, each in model.named_parameters() if images is None or id(each) in owned]
        super().__init__(model, teacher, names)
        settings = {"epochs": epochs, "lr": lr, "weight_decay": weight_decay, "target": target, "seed": seed}
        labelled = {"label_smoothing": label_smoothing, "distillation_weight": distillation_weight}
        own = labelled if images is None else {"batch_size": batch_size, "images": len(images)}
        record = {"method": {"name": type(method).__name__, **plain(vars(method))}, "distilled": teacher is not None}
        self.save_hyperparameters({**settings, **own, **record, **(run or {})})
        self.method, self.gates, self.objective = method, dict(gates), objective
        self.labelled = LabelLoss(model, label_smoothing)
        self._images, self.prices = images, prices
        self.layers = [module for module in model.modules() if isinstance(module, GatedLayer)]
        method.begin(self.gates, prices, target, seed)

    def describe(self) -> dict[str, Any]:
        """Return all hyperparameters, and what the gates will cost, as plain values for a report."""
        cost = self.expected
        return {
            "protocol": GATES_ALONE if self._images is not None else f"full-ft{'+kd' if self._teacher else ''}",
            "optimizer": "AdamW",
            "schedule": "cosine to zero, each step",
            **plain(self.hparams),
            **self.counts(),
            "expected": {"params": cost.parameters, "macs": cost.macs},
            "open": {name: float(gate.open().float().mean()) for name, gate in self.gates.items()},
        }

    @property
    def expected(self) -> Cost:
        return self.prices.expected({name: gate.open() for name, gate in self.gates.items()})

    def progress(self) -> Progress:
        steps = int(self.trainer.estimated_stepping_batches)
        return Progress(self.global_step, steps, self.hparams["target"], self.prices)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return whole batches of the images (B, C, H, W), shuffled by (seed, epoch), where there is no data module."""
        assert self._images is not None
        return self.whole_batches(self._images)

    def loss(self, batch: Sequence[Tensor]) -> Tensor:
        """Compute the loss without the penalty, a mean over the batch of images (B, C, H, W) and, perhaps, labels (B,)."""
        if self._images is not None:
            with torch.no_grad():
                target = predict(self._teacher[0], batch[0])
            return self.objective.pull(predict(self.model, batch[0]), target, 1.0)
        images, labels = images_in(batch), self.labelled.targets(batch)
        logits = predict(self.model, images)
        loss = self.labelled(logits, labels)
        if not self._teacher:
            return loss
        with torch.no_grad():
            target = predict(self._teacher[0], images)
        weight = self.hparams["distillation_weight"]
        return (1 - weight) * loss + weight * self.labelled.objective(batch).pull(logits, target, 1.0)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss + self.method.penalty(self.gates, self.progress())

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.method.before_step(self.layers, self.progress())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.method.after_step(self.layers, self.progress())

    def on_train_epoch_end(self) -> None:
        """Log what the gates will cost, and the share of them that is open, layer by layer."""
        cost = self.expected
        self.log("expected_params", float(cost.parameters), prog_bar=True)
        self.log("expected_macs", float(cost.macs))
        for name, gate in self.gates.items():
            self.log(f"open/{name}", gate.open().float().mean())

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Make AdamW over the gates in the method's groups and, where they are trained, the weights in theirs."""
        groups, lr = self.method.groups(self.gates, self.hparams["lr"]), self.hparams["lr"]
        taken = {id(each) for gate in self.gates.values() for each in gate.parameters()}
        weights = [each for each in self.trained_parameters() if id(each) not in taken]
        groups += [{"params": weights, "lr": lr, "weight_decay": self.hparams["weight_decay"]}] if weights else []
        return self.adamw(groups)


def learn_gates(
    model: nn.Module,
    method: GradualMethod,
    *,
    teacher: nn.Module | None = None,
    images: Tensor | None = None,
    data_module: LightningDataModule | None = None,
    target: float = 0.5,
    epochs: int = 10,
    hardware: Hardware = ONE_PROCESS,
    loggers: Logger | list[Logger] | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = True,
    seed: int = 0,
    progress: bool = True,
    **fields: Any,
) -> LearntGates:
    """Train gates on a model and, where a ``data_module`` has labelled images, its weights, in place; remove the gates.

    Either ``images``, (N, C, H, W), with a ``teacher``, or a ``data_module``; ``fields`` are further ones of
    ``GradualTraining``. ``target``: the share of the parameters that shall be left. With ``checkpoint_dir`` each epoch ends
    in ``last.ckpt``, from which a later call continues and, on the same kind and number of devices, ends with the numbers of
    an undisturbed run (bitwise on CPU).
    Raises ``InputError`` for bad settings, unlabelled images, models without units, or a checkpoint of another run.
    """
    _check(method, teacher, images, data_module)
    hardware = replace(hardware, precision=hardware.mixed_precision)
    gates, prices = make_gates(model, method), Prices.of(model, sites_of(model, method))
    run = run_record(hardware, inputs_sha256=model_hash(model))
    settings = {"run": run, "target": target, "images": images, "epochs": epochs, "seed": seed, **fields}
    running: dict[str, Any] = {"checkpoint_dir": checkpoint_dir, "resume": resume}
    running |= {"loggers": loggers, "progress": progress}
    with quiet_run(data_module, model, teacher), isolate_rng(), gated(model, gates):
        module = GradualTraining(model.train(images is None), teacher, method, gates, prices, **settings)
        train(module, data_module, epochs=epochs, hardware=hardware, **running)
        scores = {name: gate.scores().cpu() for name, gate in gates.items()}
        tensors = {name: gate.tensors() for name, gate in gates.items() if gate.tensors()}
        return LearntGates(scores, module.describe(), tensors)


def _check(
    method: GradualMethod, teacher: nn.Module | None, images: Tensor | None, data_module: LightningDataModule | None
) -> None:
    """Raise ``InputError`` unless there is one thing to learn from, and the method can learn from it."""
    if (images is None) == (data_module is None) or (images is not None and teacher is None):
        raise InputError(
            "a structure is learnt either on images, with a teacher, or on a data module: give one of them"
        )
    if images is not None and not method.alone:
        raise InputError(f"{type(method).__name__} changes weights and gates together: give it labelled images")
