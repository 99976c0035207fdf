"""Training with gates under Lightning: gates alone, towards the dense model, or gates and weights, towards labels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
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
from lowrank_vit.runtime.hardware import Hardware
from lowrank_vit.runtime.lightning_run import SeededTraining, run_record, train
from lowrank_vit.runtime.trainer import quiet_run
from lowrank_vit.stages.gates import GradualMethod, Progress
from lowrank_vit.stages.gates.expected import Prices
from lowrank_vit.stages.gates.gates import Gate, GatedLayer, gated

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


def trained(
    model: nn.Module,
    teacher: nn.Module | None,
    method: GradualMethod,
    gates: Mapping[str, Gate],
    prices: Prices,
    settings: Mapping[str, Any],
    data_module: LightningDataModule | None,
    *,
    hardware: Hardware,
    **running: Any,
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Mapping[str, Tensor]]]:
    """Train with gates that are in the model meanwhile; return their scores, how they were trained, and their tensors.

    ``settings`` are those of ``GradualTraining``, ``running`` those of ``train``.
    """
    run = run_record(hardware, inputs_sha256=model_hash(model))
    with quiet_run(data_module, model, teacher), isolate_rng(), gated(model, gates):
        alone = settings["images"] is not None
        module = GradualTraining(model.train(not alone), teacher, method, gates, prices, **{"run": run, **settings})
        train(module, data_module, epochs=settings["epochs"], hardware=hardware, **running)
        scores = {name: gate.scores().cpu() for name, gate in gates.items()}
        return scores, module.describe(), {name: gate.tensors() for name, gate in gates.items() if gate.tensors()}
