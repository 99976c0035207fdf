"""Training of token selectors under Lightning: alone, towards the dense model, or with the weights, towards labels, too."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lowrank_vit.architectures.base import first_inputs
from lowrank_vit.modules.counting import model_hash
from lowrank_vit.modules.token_block import SelectingBlock, masked, packed
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.objectives.labels import LabelLoss
from lowrank_vit.records.images import images_in
from lowrank_vit.records.report import plain
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import ONE_PROCESS, Hardware, derived_seed
from lowrank_vit.runtime.lightning_run import SeededTraining, run_record, train
from lowrank_vit.runtime.trainer import quiet_run

Choose = Callable[[Tensor, Tensor, int], Tensor]  # of scores, what is kept, and a selector's place: what it keeps
LOGIT, TOKEN, RATIO = 0.5, 0.5, 2.0  # weights beside a cross-entropy of 1, as in the released code
SLOWER = 0.01  # the weights' share of the learning rate


@dataclass(frozen=True)
class Seen:
    """Hold what a model with selectors makes of a batch while all tokens are still there, some of them masked.

    ``tokens``: of the patches behind the last norm, (B, T, n); ``kept``: by each selector, (B, T, 1), of 0 and 1.
    """

    logits: Tensor
    tokens: Tensor
    kept: list[Tensor]


def see(model: Any, images: Tensor, choose: Choose) -> Seen:
    """Pass images, (B, C, H, W), through a model, masking the tokens that selectors drop instead of removing them."""
    x = next(first_inputs(model, model.blocks[0], [images]))
    patches, count = slice(1, x.shape[1]), x.shape[1] - 1
    kept: list[Tensor] = []
    mask = None
    for block in model.blocks:
        if isinstance(block, SelectingBlock):
            before = kept[-1] if kept else x.new_ones(len(x), count, 1)
            always = x.new_ones(len(x), 1 + len(kept), 1)  # this package, and those before; or the class token
            scores = block.selector(x[:, 1:], torch.cat([before, always[:, 1:]], 1))[:, :count]
            kept.append(choose(scores, before, len(kept)))
            x = torch.cat([x, packed(x[:, patches], scores[..., :1], before - kept[-1])], 1)
            mask = torch.cat([always[:, :1], kept[-1], always], 1)
        x = masked(block, x, mask)
    x = model.norm(x)
    return Seen(model.forward_head(x), x[:, patches], kept)


def best(count: int) -> Choose:
    """Return a function that chooses the ``count`` best tokens; several selectors choose equally many."""

    def choose(scores: Tensor, before: Tensor, turn: int) -> Tensor:
        order = scores[..., 0].masked_fill(before[..., 0] == 0, -1.0).argsort(-1, descending=True)
        return torch.zeros_like(before).scatter(1, order[:, :count, None], 1.0)

    return choose


def drawn(scores: Tensor, noise: Tensor) -> Tensor:
    """Draw which tokens are kept, (B, T, 1), by the Gumbel trick, straight through; scores: (B, T, 2), noise: uniform."""
    soft = (scores.clamp_min(1e-12).log() - (-noise.clamp(1e-12, 1 - 1e-7).log()).log()).softmax(-1)[..., :1]
    hard = (soft.detach() > 0.5).to(soft)
    return hard - soft.detach() + soft


class SelectorTraining(SeededTraining):
    """Train a model whose selectors mask tokens; AdamW, a cosine to zero, step by step (Kong et al. 2022).

    With ``images``, (N, C, H, W), the selectors alone are trained, and no label is read: KL to the teacher's logits, plus the
    mean squared difference to its tokens where they are kept, plus ``2 mean((share - target)^2)`` over the selectors, the
    targets being what each keeps once trained. Without, all is trained on a data module's labels, the weights by a hundredth
    of ``lr``: cross-entropy, plus half of either distillation, plus the same. ``run`` is recorded.
    Raises ``InputError`` for values out of range.
    """

    doing = "train token selectors"

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        *,
        images: Tensor | None = None,
        epochs: int = 10,
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        label_smoothing: float = 0.1,
        batch_size: int = 64,
        seed: int = 0,
        run: dict[str, Any] | None = None,
    ) -> None:
        if epochs < 1 or batch_size < 1 or not (0 < lr < math.inf and 0 <= weight_decay < math.inf):
            raise InputError("epochs, batch_size and lr must be positive, and weight_decay not negative")
        self._own = selector_names(model)
        names = [name for name, _ in model.named_parameters() if images is None or name in self._own]
        super().__init__(model, teacher, names)
        settings = {"epochs": epochs, "lr": lr, "weight_decay": weight_decay, "seed": seed, "distilled": True}
        own = (
            {"label_smoothing": label_smoothing}
            if images is None
            else {"images": len(images), "batch_size": batch_size}
        )
        self.save_hyperparameters({**settings, **own, **(run or {})})
        self.labelled = LabelLoss(model, label_smoothing)
        self._images, patches = images, int(model.patch_embed.num_patches)  # type: ignore[union-attr, arg-type]
        self.blocks = [module for module in model.modules() if isinstance(module, SelectingBlock)]
        self.targets = [block.config["count"] / patches for block in self.blocks]

    def describe(self) -> dict[str, Any]:
        protocol = "gates-alone" if self._images is not None else "full-ft+kd"
        schedule = {"optimizer": "AdamW", "schedule": "cosine to zero, each step"}
        return {"protocol": protocol, **schedule, **plain(self.hparams), **self.counts()}

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return whole batches of the images, (B, C, H, W), shuffled by (seed, epoch), where there is no data module."""
        assert self._images is not None
        return self.whole_batches(self._images)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of images (B, C, H, W) and, perhaps, labels (B,)."""
        images = images_in(batch)
        with torch.no_grad():
            tokens = self._teacher[0].forward_features(images)  # type: ignore[operator]
            logits = self._teacher[0].forward_head(tokens)  # type: ignore[operator]
        seen = see(self.model, images, self._draw)
        objective = Classification() if self._images is not None else self.labelled.objective(batch)
        pull = objective.pull(seen.logits, logits, 1.0)
        last = seen.kept[-1].detach()
        apart = ((seen.tokens - tokens[:, 1:]).square().mean(-1, keepdim=True) * last).sum() / self._over_all(
            last.sum()
        )
        if self._images is not None:
            loss = pull + apart
        else:
            loss = self.labelled(seen.logits, self.labelled.targets(batch)) + LOGIT * pull + TOKEN * apart
        self.log("train_loss", loss, prog_bar=True)
        return loss + RATIO * self._excess(seen)

    def _excess(self, seen: Seen) -> Tensor:
        """Return the mean squared distance of the kept shares, over all processes, from the targets."""
        squares = []
        for turn, (kept, target) in enumerate(zip(seen.kept, self.targets, strict=True)):
            share = kept.mean()
            self.log(f"kept/{turn}", share, on_step=False, on_epoch=True)
            squares.append((share + (self._over_all(share.detach()) - share.detach()) - target).square())
        return torch.stack(squares).mean()

    def _over_all(self, value: Tensor) -> Tensor:
        return self.all_gather(value).float().mean()  # type: ignore[union-attr]

    def _draw(self, scores: Tensor, before: Tensor, turn: int) -> Tensor:
        """Draw what a selector keeps, by noise that depends on seed, step and image, not on the number of processes."""
        seed, world = derived_seed(self.hparams["seed"], 2, self.global_step, turn), self.trainer.world_size
        noise = torch.rand(len(scores) * world, *scores.shape[1:], generator=torch.Generator().manual_seed(seed))
        return drawn(scores, noise[self.global_rank :: world].to(scores)) * before

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        named = [(name, each) for name, each in self.model.named_parameters() if name in self.trained]
        decay = self.hparams["weight_decay"]
        groups: list[dict[str, Any]] = [
            {"params": params, "lr": self.hparams["lr"] * share, "weight_decay": decay}
            for share, own in ((1.0, True), (SLOWER, False))
            if (params := [each for name, each in named if (name in self._own) == own])
        ]
        return self.adamw(groups)


def selector_names(model: nn.Module) -> set[str]:
    """Return the names of all selectors' parameters. Raises ``InputError`` for a model without any."""
    found = {
        f"{name}.selector.{each}"
        for name, module in model.named_modules()
        if isinstance(module, SelectingBlock)
        for each, _ in module.selector.named_parameters()
    }
    if not found:
        raise InputError("the model has no selectors to train: with keep=1 all tokens stay")
    return found


def learn_selectors(
    model: nn.Module,
    teacher: nn.Module,
    *,
    images: Tensor | None = None,
    data_module: LightningDataModule | None = None,
    epochs: int = 10,
    hardware: Hardware = ONE_PROCESS,
    loggers: Logger | list[Logger] | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = True,
    seed: int = 0,
    progress: bool = True,
    **fields: Any,
) -> dict[str, Any]:
    """Train the selectors of ``model`` in place on ``images``, (N, C, H, W), or with its weights on a ``data_module``.

    ``fields`` are further ones of ``SelectorTraining``. With ``checkpoint_dir`` each epoch ends in ``last.ckpt``, from which
    a later call continues and, on the same kind and number of devices, ends with the numbers of an undisturbed run (bitwise
    on CPU). Returns how they were trained. Raises ``InputError`` for bad settings, and for a checkpoint of another run.
    """
    hardware = replace(hardware, precision=hardware.mixed_precision)
    run = run_record(hardware, inputs_sha256=model_hash(model))
    with quiet_run(data_module, model, teacher), isolate_rng():
        model.train(images is None)
        module = SelectorTraining(model, teacher, images=images, epochs=epochs, seed=seed, run=run, **fields)
        running: dict[str, Any] = {"checkpoint_dir": checkpoint_dir, "resume": resume, "loggers": loggers}
        train(module, data_module, epochs=epochs, hardware=hardware, progress=progress, **running)
        return module.describe()
