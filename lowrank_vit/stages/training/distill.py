"""Distillation on the calibration images: it trains every parameter of a compressed model and reads no labels.

The dense model is the teacher, for the logits and for the final features. The images are the few that the compression
was calibrated on, so this takes minutes but may overfit: the divergence on unseen images is measured before and after.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.optim.muon import Muon
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from lowrank_vit.modules.pivoted_linear import expanded
from lowrank_vit.objectives import Objective, Outputs, compared_outputs, divergences, objective_for
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.images import Batches, all_images
from lowrank_vit.records.report import plain
from lowrank_vit.runtime.hardware import ONE_PROCESS, Hardware, derived_seed
from lowrank_vit.runtime.lightning_run import SeededTraining, Start, run_record, train, warm_up_cosine
from lowrank_vit.runtime.registry import unknown
from lowrank_vit.runtime.trainer import quiet_run
from lowrank_vit.stages.training.teacher import augment, check_pair, check_settings, inputs_hash, remember

PROTOCOL = "calibration-distilled"
CLASSIFICATION = Classification()
OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon"}  # words: names
AUGMENTATION = 2  # the stream of random numbers, of one seed, that mirrors and crops


def feature_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute ``||student - teacher||^2 / ||teacher||^2`` over an image's features, (B, ..., width); mean over the batch."""
    features, target = student.float().flatten(1), teacher.float().flatten(1)
    return ((features - target).square().sum(1) / target.square().sum(1)).mean()


class Distillation(SeededTraining):
    """Train by the ``objective``'s loss, ``T^2 KL(teacher || student)`` of logits, and the errors of features and of blocks.

    ``logit_weight`` x the first, ``feature_weight`` x ``feature_error`` of the classifier's input, ``block_weight`` x
    its mean over the outputs of all blocks: with these the model memorises the few images less than with logits alone.
    AdamW on every parameter, ``vector_lr`` for vectors (biases, normalisation) and ``lr`` for matrices, which memorise
    few images if they move far; ``warm_up_cosine`` step by step. ``optimizer="muon"`` orthogonalises the steps of
    matrices (Jordan et al. 2024), scaled to AdamW's size of step, and leaves all else to NAdamW. A step takes
    ``batch_size`` images over all processes; an incomplete last batch is left out of its epoch. The student stays in
    eval mode: dropout would add noise to what it has to match. ``flips`` and ``crop_scale`` augment; the images must
    keep their meaning. ``mix`` adds to each image up to this share of another (mixup, Zhang et al. 2018); the teacher
    answers for the mixture. ``held_out``: unseen images, for the divergence before and after; where it has risen, the
    weights from before come back, unless ``restore`` is off. ``run`` is recorded with the hyperparameters.
    Raises ``InputError`` for values out of range and for models that ``check_pair`` refuses.
    """

    doing = "distil"
    last_kl: Tensor
    kl_held_out: Tensor

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        images: Tensor,
        *,
        held_out: Tensor | None = None,
        epochs: int = 20,
        optimizer: str = "adamw",
        lr: float = 1e-5,
        vector_lr: float = 3e-3,
        weight_decay: float = 0.0,
        warm_up: float = 0.05,
        gradient_clip: float | None = 1.0,
        batch_size: int = 20,
        temperature: float = 1.0,
        logit_weight: float = 1.0,
        feature_weight: float = 1.0,
        block_weight: float = 1.0,
        flips: bool = True,
        crop_scale: tuple[float, float] | None = None,
        mix: float = 0.0,
        restore: bool = True,
        objective: Objective = CLASSIFICATION,
        seed: int = 0,
        run: dict[str, Any] | None = None,
    ) -> None:
        rates = {"lr": lr, "vector_lr": vector_lr, "temperature": temperature}
        weights = (weight_decay, logit_weight, feature_weight, block_weight)
        check_settings(epochs, batch_size, rates, weights, warm_up, gradient_clip, crop_scale, mix)
        if optimizer not in OPTIMIZERS:
            raise unknown("optimizer", optimizer, OPTIMIZERS)
        check_pair(model.eval(), teacher.eval(), images)
        super().__init__(model, teacher, [name for name, _ in model.named_parameters()])
        self.save_hyperparameters(ignore=["model", "teacher", "images", "held_out", "objective", "run"])
        unseen = 0 if held_out is None else len(held_out)
        self.save_hyperparameters({"images": len(images), "held_out_images": unseen, **(run or {})})
        self.objective = objective_for(teacher, objective).fitted(teacher, images.split(batch_size))
        self._images, self._held_out, self._blocks = images, held_out, block_weight > 0
        self._start, self._draws = Start(model), torch.empty(0)
        self._partners, self._shares = torch.empty(0), torch.empty(0)  # of mixtures
        self._known: Outputs | None = None  # by (mirrored, position)
        self.kl = MeanMetric()
        self.register_buffer("last_kl", torch.tensor(float("nan")))  # a buffer is in checkpoints and other processes
        self.register_buffer("kl_held_out", torch.full((2,), float("nan")))

    @property
    def protocol(self) -> str:
        """Return the name for results of this training."""
        return PROTOCOL

    def describe(self) -> dict[str, Any]:
        """Return all hyperparameters and what was measured, as plain values for a report.

        ``train_kl``, by the objective's name: the mean of the last epoch's steps. ``kl_held_out``: None without images.
        """
        name, (before, after) = self.objective.measures, self.kl_held_out.tolist()
        return {
            "schedule": "warm-up, then cosine to zero, each step",
            **plain(self.hparams),
            "optimizer": OPTIMIZERS[self.hparams["optimizer"]],
            **self.counts(),
            f"train_{name}": self.last_kl.item(),
            f"{name}_held_out": None if self._held_out is None else {"before": before, "after": after},
            **({"kept": "before"} if self.risen else {}),
        }

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return whole batches of positions (B,) and images (B, C, H, W), shuffled by (seed, epoch)."""
        return self.whole_batches(torch.arange(len(self._images)), self._images)

    def loss(self, images: Tensor, target: Outputs) -> tuple[Tensor, Tensor]:
        """Compute the training loss, and the divergence of the logits at temperature 1; means over the batch."""
        features, logits, *blocks = compared_outputs(self.model, images, self._blocks)
        loss = self.hparams["logit_weight"] * self.objective.pull(logits, target[1], self.hparams["temperature"])
        loss = loss + self.hparams["feature_weight"] * feature_error(features, target[0])
        if blocks:
            errors = [feature_error(block, dense) for block, dense in zip(blocks, target[2:], strict=True)]
            loss = loss + self.hparams["block_weight"] * torch.stack(errors).mean()
        return loss, self.objective.pull(logits.detach(), target[1], 1.0)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        positions, images = batch
        draws = self._draws[positions]
        images = augment(images, draws, self.hparams["flips"], self.hparams["crop_scale"])
        if self.hparams["mix"]:
            images = self._mixed(images, positions)
        if self._known is None:
            with torch.no_grad():
                target = compared_outputs(self._teacher[0], images, self._blocks)
        else:
            mirrored = (draws[:, 0] < 0.5).long() * int(self.hparams["flips"])
            target = tuple(known[mirrored, positions] for known in self._known)
        loss, kl = self.loss(images, target)
        self.kl.update(kl)
        self.log("train_loss", loss, prog_bar=True)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def _mixed(self, images: Tensor, positions: Tensor) -> Tensor:
        """Mix images that are augmented, (B, C, H, W), with others, whose augmentation is their own."""
        others, shares = self._partners[positions.cpu()], self._shares[positions.cpu()] * self.hparams["mix"]
        draws, scale = self._draws[others.to(self.device)], self.hparams["crop_scale"]
        added = augment(self._images[others].to(images), draws, self.hparams["flips"], scale)
        return torch.lerp(images, added, shares.to(images)[:, None, None, None])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        matrices, vectors = ([p for p in self.trained_parameters() if (p.ndim == 1) is flat] for flat in (False, True))
        groups = [{"params": matrices, "lr": self.hparams["lr"]}, {"params": vectors, "lr": self.hparams["vector_lr"]}]
        factor = partial(warm_up_cosine, warm_up=self.hparams["warm_up"])
        decay = self.hparams["weight_decay"]
        if self.hparams["optimizer"] == "muon":
            return self.scheduled(Muon(groups, weight_decay=decay, nesterov=True), factor)
        return self.adamw(groups, factor, weight_decay=decay)

    def on_fit_start(self) -> None:
        """Move the teacher to the model's device; measure the divergence, unless a resumed run has done so."""
        super().on_fit_start()
        if self.kl_held_out[0].isnan():
            self._measure(0)
        fixed = self.hparams["crop_scale"] is None and not self.hparams["mix"]
        if fixed and 1 + self.hparams["flips"] < self.hparams["epochs"]:
            with self.trainer.precision_plugin.forward_context():
                flips = self.hparams["flips"]
                self._known = remember(self._teacher[0], self._images, flips, self.device, self._blocks)

    def on_train_epoch_start(self) -> None:
        """Draw mirroring and crops by seed, epoch and image alone, whatever the number of processes."""
        super().on_train_epoch_start()
        generator = torch.Generator().manual_seed(derived_seed(self.hparams["seed"], self.current_epoch, AUGMENTATION))
        count = len(self._images)
        self._draws = torch.rand(count, 4, generator=generator).to(self.device)
        self._partners = torch.randperm(count, generator=generator)
        self._shares = torch.rand(count, generator=generator)
        self.kl.reset()

    def on_train_epoch_end(self) -> None:
        """Record the epoch's divergence before the checkpoint is written."""
        self.last_kl.copy_(self.kl.compute())
        self.log(f"train_{self.objective.measures}", self.last_kl, prog_bar=True)
        if self.current_epoch + 1 == self.hparams["epochs"]:
            self._measure(1)
            self._known = None
            if self.risen:
                self._start.restore(self.model, *self.kl_held_out.tolist())

    @property
    def risen(self) -> bool:
        """Tell whether the divergence on unseen images has risen, so that the weights are to be those from before."""
        return bool(self.hparams["restore"] and self.kl_held_out[1] > self.kl_held_out[0])

    def _measure(self, when: int) -> None:
        if self._held_out is not None:
            batches = self._held_out.split(self.hparams["batch_size"])
            self.kl_held_out[when] = divergences(self.objective, self._teacher[0], [self.model], batches)[0]


def distill(
    model: nn.Module,
    teacher: nn.Module,
    images: Tensor | Batches,
    *,
    held_out: Tensor | Batches | None = None,
    epochs: int = 20,
    hardware: Hardware = ONE_PROCESS,
    loggers: Logger | list[Logger] | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = True,
    seed: int = 0,
    progress: bool = True,
    **fields: Any,
) -> Distillation:
    """Train all of ``model`` in place towards ``teacher`` on ``images``, (N, C, H, W) or batches, preprocessed for it.

    ``fields`` are further ones of ``Distillation``. With ``checkpoint_dir`` each epoch ends in ``last.ckpt``, from which
    a later call continues and, on the same kind and number of devices, ends with the weights of an undisturbed run
    (bitwise on CPU). The model comes back on its own device, in eval mode, with its own ``requires_grad`` flags.
    Raises ``InputError`` for bad settings, models that do not fit, or a checkpoint of another run.
    """
    hardware = replace(hardware, precision=hardware.mixed_precision)
    images, held_out = all_images(images), None if held_out is None else all_images(held_out)
    with expanded(model), quiet_run(None, model.eval(), teacher), isolate_rng():
        run = run_record(hardware, inputs_sha256=inputs_hash(model, teacher, images))
        module = Distillation(model, teacher, images, held_out=held_out, epochs=epochs, seed=seed, run=run, **fields)
        running: dict[str, Any] = {"checkpoint_dir": checkpoint_dir, "resume": resume, "loggers": loggers}
        clip = module.hparams["gradient_clip"]
        train(module, epochs=epochs, hardware=hardware, progress=progress, gradient_clip_val=clip, **running)
    return module
