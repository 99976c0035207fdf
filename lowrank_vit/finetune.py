"""Partial fine-tuning: LayerNorm, biases, classifier and patch embedding are trained, all else stays as it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from lowrank_vit.errors import InputError
from lowrank_vit.trainer import LastCheckpoint, check_resumable, default_precision, make_trainer, quiet_run, reseed

LAST = "last.ckpt"


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


def trainable_share(model: nn.Module) -> float:
    """The share of all parameters, 0 to 1, that the partial fine-tune trains."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(sizes[name] for name in partial_parameters(model)) / sum(sizes.values())


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))``, mean over the batch. Logits: (batch, classes)."""
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def cosine(step: int, steps: int) -> float:
    """The factor of the learning rate: 1 at step 0, 0 from the last step on."""
    return 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))


class PartialFineTune(LightningModule):
    """The paper's partial fine-tune of a classifier, optionally distilled from a teacher.

    AdamW on ``partial_parameters``, the learning rate falling by a cosine to zero, step by step; cross-entropy with
    label smoothing, of which a teacher replaces the share ``distillation_weight`` by ``distillation_loss``.
    Freezes the other parameters of ``model``. The teacher is in no checkpoint and in no count. ``run`` is recorded with
    the hyperparameters: what else the result depends on.
    Raises ``InputError`` for values out of range and models that are not timm's.
    """

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
        super().__init__()
        if epochs < 1 or lr <= 0 or temperature <= 0 or weight_decay < 0:
            raise InputError("epochs, lr and temperature must be positive, and weight_decay not negative")
        if not (0 <= distillation_weight <= 1 and 0 <= label_smoothing <= 1):
            raise InputError("distillation_weight and label_smoothing must be between 0 and 1")
        if teacher is model:
            raise InputError("the teacher is the student: hand in the dense model as another object")
        self.save_hyperparameters(ignore=["model", "teacher", "run"])
        self.save_hyperparameters({"distilled": teacher is not None, **(run or {})})
        self.model = model
        self.top1 = MeanMetric()
        # in a tuple, so that it is no submodule: not saved, not counted, not trained
        self._teacher = () if teacher is None else (teacher,)
        self._first_epoch = True
        self.val_top1: float | None = None  # percent, of the last epoch; None where none was run
        self.trained = frozenset(partial_parameters(model))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.trained)

    def describe(self) -> dict[str, Any]:
        """All hyperparameters and what was trained, as plain values for a report."""
        sizes = {name: parameter.numel() for name, parameter in self.model.named_parameters()}
        trained = sum(sizes[name] for name in self.trained)
        return {
            "optimizer": "AdamW",
            "schedule": "cosine to zero, each step",
            **dict(self.hparams),
            "trained_parameters": trained,
            "parameters": sum(sizes.values()),
            "trainable_share": trained / sum(sizes.values()),
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
        self.log("val_top1", self.top1.compute(), prog_bar=True, sync_dist=True, reduce_fx="max")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over the trained parameters, and its schedule."""
        parameters = [p for name, p in self.model.named_parameters() if name in self.trained]
        optimizer = torch.optim.AdamW(parameters, lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"])
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, lambda step: cosine(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

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
    progress: bool = True,
    **fields: float,
) -> PartialFineTune:
    """Fine-tune ``model`` in place; ``fields`` are further ones of ``PartialFineTune``.

    With ``checkpoint_dir`` each epoch ends in ``last.ckpt``, from which a later call continues and, on the same kind
    and number of devices, ends with the weights of an undisturbed run (bitwise on CPU), as long as the data module
    derives an epoch's order from ``set_epoch`` of its sampler or from torch's generator. The model comes back on its
    own device, in its own mode and with its own ``requires_grad`` flags.
    Raises ``InputError`` for bad settings, unlabelled images, or a checkpoint of another run.
    """
    precision = precision or default_precision(accelerator)
    last = None if checkpoint_dir is None else Path(checkpoint_dir) / LAST
    resumed = last if resume and last is not None and last.exists() else None
    with quiet_run(data_module, model, teacher), isolate_rng():
        run = {"precision": precision, "processes": devices * num_nodes}
        module = PartialFineTune(model.train(), epochs=epochs, lr=lr, seed=seed, teacher=teacher, run=run, **fields)
        if resumed is not None:
            check_resumable(module, resumed, {f"model.{name}" for name in module.trained})
        trainer = make_trainer(
            devices=devices,
            num_nodes=num_nodes,
            accelerator=accelerator,
            strategy=strategy,
            precision=precision,
            progress=progress,
            callbacks=[] if last is None else [LastCheckpoint(last)],
            max_epochs=epochs,
            logger=loggers or False,
            enable_checkpointing=last is not None,
            log_every_n_steps=10,
        )
        trainer.fit(module, datamodule=data_module, ckpt_path=resumed, weights_only=True)
        if "val_top1" in trainer.callback_metrics:
            module.val_top1 = trainer.callback_metrics["val_top1"].item()
    return module
