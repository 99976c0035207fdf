"""Fine-tuning on labelled images: partial (LayerNorm, biases, classifier, patch embedding), or of all parameters.

Protocols: ``partial-ft`` (the paper's) and ``full-ft``, each with ``+kd`` where the dense model is the teacher.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lowrank_vit.architectures.linears import classifiers, patch_embedding
from lowrank_vit.data.loading import as_data_module
from lowrank_vit.modules.pivoted_linear import expanded
from lowrank_vit.modules.predicting import predict
from lowrank_vit.objectives import Objective
from lowrank_vit.objectives.classification import Classification, classes_of
from lowrank_vit.objectives.labels import LabelLoss
from lowrank_vit.records.images import Batch, Batches, images_in, labels_in, labels_of_several
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import ONE_PROCESS, Hardware
from lowrank_vit.runtime.lightning_run import SeededTraining, run_record, train
from lowrank_vit.runtime.trainer import quiet_run
from lowrank_vit.stages.training.teacher import check_imitation, towards_teacher

CLASSIFICATION = Classification()


def _classifier_parameters(model: nn.Module) -> set[int]:
    """Return the ids of the classifier's parameters; a distilled DeiT has two heads."""
    get_classifier: Any = getattr(model, "get_classifier", None)
    heads = tuple(classifiers(model).values()) if get_classifier is None else get_classifier()
    if heads == ():
        raise InputError(
            f"{type(model).__name__} has no classifier of a known name (head, classifier, ...): pass `full=True`"
        )
    return {id(p) for head in (heads if isinstance(heads, tuple) else (heads,)) for p in head.parameters()}


def partial_parameters(model: nn.Module) -> list[str]:
    """Name the parameters that the paper's partial fine-tune trains (section 4.1, item 5), in the model's order.

    Weight and bias of every normalisation layer, every bias (those of low-rank layers too), the classifier, and the
    patch embedding. Tokens, position embeddings and Swin's relative position tables stay frozen.
    Raises ``InputError`` for a model whose classifier is not known.
    """
    head = _classifier_parameters(model)
    norms = {
        id(parameter)
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }
    stem = patch_embedding(model)
    return [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in head | norms or name.startswith(stem) or name.endswith("bias")
    ]


def check_classes(model: nn.Module, present: int | None) -> None:
    """Raise ``InputError`` where the data have more classes than the model."""
    classes = classes_of(model)
    if classes is not None and present is not None and present > classes:
        raise InputError(
            f"the images have {present} classes, the model has {classes}: the data belong to another model"
        )


def trainable_share(model: nn.Module) -> float:
    """Return the share of all parameters, 0 to 1, that the partial fine-tune trains."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(sizes[name] for name in partial_parameters(model)) / sum(sizes.values())


class PartialFineTune(SeededTraining):
    """Fine-tune a classifier partially, as the paper does, optionally distilled from a teacher.

    The paper gives ``partial_parameters``, 20 epochs, the learning rate 1e-4 and a cosine, here to zero, step by step. The
    loss is cross-entropy, with a teacher that of ``towards_teacher``. Freezes the other parameters of ``model``. The teacher
    is in no checkpoint and in no count. All of the following is recorded, and each is a free choice: the paper does not say.

    - AdamW, with ``weight_decay`` 0: what is trained is mostly vectors.
    - ``label_smoothing`` 0.1, as in the training of DeiT and Swin.
    - No warm-up, no averaged weights; tokens, position embeddings and Swin's position tables stay frozen.
    - Stochastic depth (``drop_path``) as the model was made with; timm makes Swin-B with 0.1, DeiT and ViT with none.
    - The images, by the data module: a random resized crop and a flip (``ImageData``), none for digits; the batch.
    - ``run``, from ``finetune``: bfloat16 autocast on a GPU that has it, the batch over all processes, the augmentation.

    Raises ``InputError`` for values out of range and models whose classifier is not known.
    """

    doing = "fine-tune"

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
        hard_teacher: bool = False,
        align_weight: float = 0.0,
        seed: int = 0,
        run: dict[str, Any] | None = None,
    ) -> None:
        if epochs < 1 or not (0 < lr < math.inf and 0 < temperature < math.inf and 0 <= weight_decay < math.inf):
            raise InputError("epochs, lr and temperature must be positive, and weight_decay not negative; all finite")
        if not (0 <= distillation_weight <= 1 and 0 <= label_smoothing <= 1):
            raise InputError("distillation_weight and label_smoothing must be between 0 and 1")
        check_imitation(teacher, hard_teacher, align_weight)
        super().__init__(model, teacher, self.names(model))
        self.save_hyperparameters(ignore=["model", "teacher", "run"])
        self.save_hyperparameters({"distilled": teacher is not None, **(run or {})})
        self.labelled, self.top1 = LabelLoss(model, label_smoothing), MeanMetric()
        self.register_buffer("last_top1", torch.tensor(float("nan")))  # a buffer, so that checkpoints have it

    @property
    def val_top1(self) -> float | None:
        """Return the last epoch's top-1 in percent; None where nothing was validated."""
        return None if self.last_top1.isnan() else self.last_top1.item()

    @property
    def protocol(self) -> str:
        """Return the name for results of this training, e.g. ``partial-ft`` or ``full-ft+kd``."""
        return f"{self.share}-ft{'+kd' if self._teacher else ''}"

    def describe(self) -> dict[str, Any]:
        return {
            "optimizer": "AdamW",
            "schedule": "cosine to zero, each step",
            **dict(self.hparams),
            **self.counts(),
            "drop_path": max(
                (getattr(module, "drop_prob", None) or 0.0 for module in self.model.modules()), default=0.0
            ),
            "val_top1": self.val_top1,
        }

    def loss(self, images: Tensor, labels: Tensor, objective: Objective = CLASSIFICATION) -> Tensor:
        """Compute the training loss, a mean over the batch. images: (B, C, H, W), labels: (B,), or (B, labels)."""

        def labelled(logits: Tensor) -> Tensor:
            return self.labelled(logits, labels)

        if not self._teacher:
            return labelled(predict(self.model, images))
        settings, epoch = self.hparams, self.current_epoch
        return towards_teacher(self.model, self._teacher[0], images, labelled, objective, settings, epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Return the loss of a batch, if it has images. Raises ``InputError`` for labels that are missing or foreign."""
        images = images_in(batch)
        if not len(images):
            return None
        loss = self.loss(images, self.labelled.targets(batch), self.labelled.objective(batch))
        self.log("train_loss", loss, prog_bar=True)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count hits for ``val_top1``, in percent, over all images of all processes; of several labels there are none."""
        if labels_of_several(batch) is not None:
            return
        images, labels = images_in(batch), labels_in(batch)
        self.top1.update(100.0 * (predict(self.model, images).argmax(-1) == labels))

    def on_validation_epoch_start(self) -> None:
        """Reset the metric: the states of spawned processes lie in shared memory."""
        self.top1.reset()

    def on_validation_epoch_end(self) -> None:
        self.last_top1.copy_(self.top1.compute())
        self.log("val_top1", self.last_top1, prog_bar=True, sync_dist=True, reduce_fx="max")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        settings = {name: self.hparams[name] for name in ("lr", "weight_decay")}
        return self.adamw([{"params": self.trained_parameters()}], **settings)


class FullFineTune(PartialFineTune):
    """Train every parameter in the same way; with a teacher this is the protocol of most published compressions."""

    share = "full"

    @staticmethod
    def names(model: nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters()]


def _run_of(data_module: LightningDataModule, hardware: Hardware) -> dict[str, Any]:
    """Return what a result depends on besides the module: precision, batch over all processes, and augmentation."""
    run = run_record(hardware)
    images = getattr(data_module, "training_record", None)  # a module of the caller's own need not have it
    return run if images is None else run | images | {"batch_size": images["batch_size"] * hardware.processes}


def finetune(
    model: nn.Module,
    data_module: LightningDataModule | Batches,
    *,
    epochs: int = 20,
    lr: float = 1e-4,
    hardware: Hardware = ONE_PROCESS,
    loggers: Logger | list[Logger] | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = True,
    seed: int = 0,
    teacher: nn.Module | None = None,
    full: bool = False,
    progress: bool = True,
    **fields: Any,
) -> PartialFineTune:
    """Fine-tune ``model`` in place, ``full`` or partially; ``fields`` are further ones of ``PartialFineTune``.

    With ``checkpoint_dir`` each epoch ends in ``last.ckpt``, from which a later call continues and, on the same kind
    and number of devices, ends with the weights of an undisturbed run (bitwise on CPU), as long as the data module
    derives an epoch's order from ``set_epoch`` of its sampler or from torch's generator. The model comes back on its
    own device, in its own mode and with its own ``requires_grad`` flags. In place of the data module, a loader or a list of
    batches serves one process, in its own order; nothing is validated then.
    Raises ``InputError`` for bad settings, unlabelled images, or a checkpoint of another run.
    """
    hardware = replace(hardware, precision=hardware.mixed_precision)
    data_module = as_data_module(data_module, hardware)
    check_classes(model, getattr(data_module, "num_classes", None))
    with expanded(model), quiet_run(data_module, model, teacher), isolate_rng():
        run = _run_of(data_module, hardware)
        kind = FullFineTune if full else PartialFineTune
        module = kind(model.train(), epochs=epochs, lr=lr, seed=seed, teacher=teacher, run=run, **fields)
        train(
            module,
            data_module,
            epochs=epochs,
            checkpoint_dir=checkpoint_dir,
            resume=resume,
            loggers=loggers,
            hardware=hardware,
            progress=progress,
        )
    return module
