"""Top-1, top-5 and loss of a classifier; every image counts once, on any number of devices."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torchmetrics import Metric

from lowrank_vit.errors import InputError
from lowrank_vit.parallel import rank_and_world
from lowrank_vit.trainer import make_trainer, quiet_run

EMPTY = "no images to evaluate: the data set, its validation split or --limit is empty"


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise ``InputError`` for labels, (batch,), that are missing (-1) or that the classifier does not have."""
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < 0:
        raise InputError(f"an image has no label ({smallest}): evaluate on a labelled split, --split validation")
    if largest >= classes:
        raise InputError(f"label {largest} is beyond the model's {classes} classes: the data belong to another model")


def count_hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many of the labels, (batch,), are among the k largest logits, (batch, classes)."""
    k = min(k, logits.shape[-1])
    return (logits.topk(k, dim=-1).indices == labels[:, None]).sum()


class ClassificationScore(Metric):
    """Hits, summed loss and number of images: integers and one float64, added up over the processes."""

    full_state_update = False
    higher_is_better = None
    top1: Tensor
    top5: Tensor
    loss: Tensor
    n: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("top1", "top5", "n"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")
        # Apple's GPUs have no float64
        dtype = torch.float32 if torch.backends.mps.is_available() else torch.float64
        self.add_state("loss", torch.tensor(0.0, dtype=dtype), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch. logits: (batch, classes), labels: (batch,)."""
        # not in place: spawned processes start with the same memory under their states
        self.top1 = self.top1 + count_hits(logits, labels, 1)
        self.top5 = self.top5 + count_hits(logits, labels, 5)
        self.loss = self.loss + F.cross_entropy(logits.float(), labels, reduction="none").to(self.loss.dtype).sum()
        self.n = self.n + len(labels)

    def compute(self) -> dict[str, Tensor]:
        """Percentages, mean loss and number of images, in the loss's precision."""
        n = self.n.to(self.loss.dtype)
        return {"top1": 100 * self.top1 / n, "top5": 100 * self.top5 / n, "loss": self.loss / n, "n": n}


class Evaluation(LightningModule):
    """Feeds batches ``(images (B, C, H, W), labels (B,))`` through the model and into the score."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.score = ClassificationScore()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Raises ``InputError`` for labels that cannot be scored."""
        images, labels = batch
        logits = self.model(images)
        check_labels(labels, logits.shape[-1])
        self.score.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Sum over the processes, once; the largest of equal values is the way to log them without rounding."""
        for name, value in self.score.compute().items():
            self.log(name, value, sync_dist=True, reduce_fx="max")
        self.score.reset()


def shard(loader: DataLoader) -> DataLoader:
    """The loader's share of this process: images rank, rank + world, ... without padding.

    A loader with a sampler of its own is taken to be sharded already. Raises ``InputError`` for an iterable data set.
    """
    rank, world = rank_and_world()
    if world == 1:
        return loader
    if isinstance(loader.dataset, IterableDataset):
        raise InputError("an iterable data set cannot be divided among devices: evaluate on one device")
    if type(loader.sampler) not in (SequentialSampler, RandomSampler):
        return loader
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size or 1,
        sampler=range(rank, len(loader.dataset), world),  # type: ignore[arg-type]
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )


class _LoaderModule(LightningDataModule):
    """A plain loader as a data module, so that it is sharded inside the worker process."""

    def __init__(self, loader: DataLoader) -> None:
        super().__init__()
        self.loader = loader

    def val_dataloader(self) -> DataLoader:
        return shard(self.loader)


def evaluate(
    model: nn.Module,
    dataloader: DataLoader | LightningDataModule,
    *,
    devices: int = 1,
    num_nodes: int = 1,
    accelerator: str = "auto",
    strategy: str | Strategy = "auto",
    precision: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """``{"top1", "top5", "loss", "n"}``: percent, percent, mean cross-entropy, images; top-5 is of at most all classes.

    With several devices hand in a data module: its ``val_dataloader`` is called in each process and shards the indices
    without padding; a plain loader without a sampler of its own is sharded here. ``precision`` is Lightning's (None:
    float32). The model comes back on its own device and in its own mode.
    Raises ``InputError`` for no images, missing or foreign labels, and devices that are not there.
    """
    data = dataloader if isinstance(dataloader, LightningDataModule) else _LoaderModule(dataloader)
    if precision is not None and precision not in ("32", "32-true") and not precision.endswith("mixed"):
        model = copy.deepcopy(model)  # Lightning converts the weights in place
    with quiet_run(data, model):
        trainer = make_trainer(
            devices=devices,
            num_nodes=num_nodes,
            accelerator=accelerator,
            strategy=strategy,
            precision=precision,
            progress=progress,
            logger=False,
            enable_checkpointing=False,
        )
        results = trainer.validate(Evaluation(model), datamodule=data, verbose=False)
    if not results or not results[0]["n"]:
        raise InputError(EMPTY)
    return {**results[0], "n": round(results[0]["n"])}
