"""Fine-tuning on labelled images: in part (LayerNorm, biases, classifier, patch embedding), or of all parameters.

Protocols: ``partial-ft`` (the paper's) and ``full-ft``, each with ``+kd`` where the dense model is the teacher.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from lowrank_vit.errors import InputError
from lowrank_vit.trainer import default_precision, quiet_run
from lowrank_vit.training import SeededTraining, cosine, distillation_loss, train


def _classifier_parameters(model: nn.Module) -> set[int]:
    """The identities of the classifier's parameters; a distilled DeiT has two heads."""
    get_classifier: Any = getattr(model, "get_classifier", None)
    if get_classifier is None:
        raise InputError(f"{type(model).__name__} has no get_classifier(): fine-tuning needs a timm model")
    heads = get_classifier()
    return {id(p) for head in (heads if isinstance(heads, tuple) else (heads,)) for p in head.parameters()}


def partial_parameters(model: nn.Module) -> list[str]:
    """Names of what the paper's partial fine-tune trains (section 4.1, item 5), in the model's order.

    Weight and bias of every normalisation layer, every bias (those of low-rank layers too), the classifier, and the
    patch embedding. Tokens, position embeddings and Swin's relative position tables stay frozen.
    Raises ``InputError`` for a model that is not timm's.
    """
    head = _classifier_parameters(model)
    norms = {
        id(parameter)
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }
    return [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in head | norms or name.startswith("patch_embed.") or name.endswith("bias")
    ]


def check_classes(model: nn.Module, present: int | None) -> None:
    """Raise ``InputError`` where the data have more classes than the model."""
    own = getattr(model, "num_classes", None)
    if own is not None and present is not None and present > own:
        raise InputError(
            f"the images are of {present} classes, the model knows {own}: the data belong to another model"
        )


def trainable_share(model: nn.Module) -> float:
    """The share of all parameters, 0 to 1, that the partial fine-tune trains."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(sizes[name] for name in partial_parameters(model)) / sum(sizes.values())


class PartialFineTune(SeededTraining):
    """The paper's partial fine-tune of a classifier, optionally distilled from a teacher.

    AdamW on ``partial_parameters``, the learning rate falling by a cosine to zero, step by step; cross-entropy with
    label smoothing, of which a teacher replaces the share ``distillation_weight`` by ``distillation_loss``.
    Freezes the other parameters of ``model``. The teacher is in no checkpoint and in no count. ``run`` is recorded with
    the hyperparameters: what else the result depends on.
    Raises ``InputError`` for values out of range and models that are not timm's.
    """

    share = "partial"
    names = staticmethod(partial_parameters)
    last_top1: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        epochs: int = 20,
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        label_smoothing: float = 0.1,
        teacher: nn.Module | None = None,
        distillation_weight: float = 0.5,
        temperature: float = 1.0,
        seed: int = 0,
        run: dict[str, Any] | None = None,
    ) -> None:
        if epochs < 1 or not (0 < lr < math.inf and 0 < temperature < math.inf and 0 <= weight_decay < math.inf):
            raise InputError("epochs, lr and temperature must be positive, and weight_decay not negative; all finite")
        if not (0 <= distillation_weight <= 1 and 0 <= label_smoothing <= 1):
            raise InputError("distillation_weight and label_smoothing must be between 0 and 1")
        super().__init__(model, teacher, self.names(model))
        self.save_hyperparameters(ignore=["model", "teacher", "run"])
        self.save_hyperparameters({"distilled": teacher is not None, **(run or {})})
        self.top1 = MeanMetric()
        self.register_buffer("last_top1", torch.tensor(float("nan")))  # a buffer, since checkpoints hand it on

    @property
    def val_top1(self) -> float | None:
        """Percent, of the last epoch; None where none was validated."""
        return None if self.last_top1.isnan() else self.last_top1.item()

    @property
    def protocol(self) -> str:
        """What results of this training are called: ``partial-ft``, ``full-ft+kd``."""
        return f"{self.share}-ft{'+kd' if self._teacher else ''}"

    def describe(self) -> dict[str, Any]:
        """All hyperparameters and what was trained, as plain values for a report."""
        return {
            "optimizer": "AdamW",
            "schedule": "cosine to zero, each step",
            **dict(self.hparams),
            **self.counts(),
            "val_top1": self.val_top1,
        }

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """images: (B, C, H, W), labels: (B,). The training loss, a mean over the batch."""
        logits = self.model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.hparams["label_smoothing"])
        if not self._teacher:
            return loss
        with torch.no_grad():
            target = self._teacher[0](images)
        weight = self.hparams["distillation_weight"]
        return (1 - weight) * loss + weight * distillation_loss(logits, target, self.hparams["temperature"])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Raises ``InputError`` where the first batch is not labelled."""
        images, labels = batch
        if batch_idx == 0 and int(labels.min()) < 0:
            raise InputError("training images have no labels: fine-tune on a labelled data set")
        loss = self.loss(images, labels)
        self.log("train_loss", loss, prog_bar=True)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Top-1 in percent, ``val_top1``, over all images of all processes."""
        images, labels = batch
        self.top1.update(100.0 * (self.model(images).argmax(-1) == labels))

    def on_validation_epoch_start(self) -> None:
        """Fresh states: those of spawned processes lie in shared memory."""
        self.top1.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's accuracy."""
        self.last_top1.copy_(self.top1.compute())
        self.log("val_top1", self.last_top1, prog_bar=True, sync_dist=True, reduce_fx="max")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over the trained parameters, and its schedule."""
        settings = {name: self.hparams[name] for name in ("lr", "weight_decay")}
        optimizer = torch.optim.AdamW(self.trained_parameters(), **settings)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, lambda step: cosine(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class FullFineTune(PartialFineTune):
    """The same training of every parameter; with a teacher this is the protocol of most published compressions."""

    share = "full"

    @staticmethod
    def names(model: nn.Module) -> list[str]:
        """All parameters."""
        return [name for name, _ in model.named_parameters()]


def fit(
    model: nn.Module,
    data_module: LightningDataModule,
    *,
    epochs: int = 20,
    lr: float = 1e-4,
    devices: int = 1,
    num_nodes: int = 1,
    strategy: str | Strategy = "auto",
    accelerator: str = "auto",
    precision: str | None = None,
    loggers: Logger | list[Logger] | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = True,
    seed: int = 0,
    teacher: nn.Module | None = None,
    full: bool = False,
    progress: bool = True,
    **fields: float,
) -> PartialFineTune:
    """Fine-tune ``model`` in place, ``full`` or in part; ``fields`` are further ones of ``PartialFineTune``.

    With ``checkpoint_dir`` each epoch ends in ``last.ckpt``, from which a later call continues and, on the same kind
    and number of devices, ends with the weights of an undisturbed run (bitwise on CPU), as long as the data module
    derives an epoch's order from ``set_epoch`` of its sampler or from torch's generator. The model comes back on its
    own device, in its own mode and with its own ``requires_grad`` flags.
    Raises ``InputError`` for bad settings, unlabelled images, or a checkpoint of another run.
    """
    precision = precision or default_precision(accelerator)
    check_classes(model, getattr(data_module, "num_classes", None))
    with quiet_run(data_module, model, teacher), isolate_rng():
        run = {"precision": precision, "processes": devices * num_nodes}
        kind = FullFineTune if full else PartialFineTune
        module = kind(model.train(), epochs=epochs, lr=lr, seed=seed, teacher=teacher, run=run, **fields)
        train(
            module,
            data_module,
            epochs=epochs,
            checkpoint_dir=checkpoint_dir,
            resume=resume,
            loggers=loggers,
            devices=devices,
            num_nodes=num_nodes,
            accelerator=accelerator,
            strategy=strategy,
            precision=precision,
            progress=progress,
        )
    return module
