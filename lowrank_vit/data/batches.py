"""Batches of the caller's own, as a data module to train on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lowrank_vit.records.images import Batches, Images, each_batch
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import Hardware


class GivenBatches(LightningDataModule):
    """Train on batches as they come, in the same order in every epoch unless they shuffle themselves."""

    def __init__(self, batches: Batches) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Batches:
        """Return the loader, or the batches."""
        return self.batches if isinstance(self.batches, DataLoader) else each_batch(self.batches)


def as_data_module(data: LightningDataModule | Batches, hardware: Hardware) -> LightningDataModule:
    """Return a data module that serves batches. Raises ``InputError`` for what is no batches, and for several processes."""
    if isinstance(data, LightningDataModule):
        return data
    batches = Images.of(data).batches
    if isinstance(batches, Iterator) or not hasattr(batches, "__len__"):
        raise InputError("the training images are gone through more than once: pass a list or a data loader")
    with suppress(TypeError):  # a loader of a stream has no length
        if not len(batches):  # type: ignore[arg-type]
            raise InputError("no images to train on: the data set is empty")
    if hardware.processes > 1:
        raise InputError("several processes cannot share a list of batches: pass a data module, such as ImageData")
    return GivenBatches(batches)
