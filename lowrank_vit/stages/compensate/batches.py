"""Seeded batches of the calibration images, the same on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import rank_and_world


class SeededBatches:
    """Yield this process's share of each batch of a run of ``steps``, as lists of indices.

    Every pass over the images has its own order and leaves out the incomplete last batch. Batch b depends on the seed
    only, so a resumed run and a run on several processes see the batches of a plain run.
    ``steps_done`` says which batch an iteration starts with.
    """

    def __init__(self, count: int, batch_size: int, steps: int, seed: int, steps_done: Callable[[], int]) -> None:
        self.count, self.batch_size, self.steps, self.seed = count, min(batch_size, count), steps, seed
        self.steps_done = steps_done

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = rank_and_world()
        in_pass, last_pass, order = self.count // self.batch_size, -1, []
        for batch in range(self.steps_done(), self.steps):
            number, place = divmod(batch, in_pass)
            if number != last_pass:
                generator = torch.Generator().manual_seed((self.seed << 20) + number)
                last_pass, order = number, torch.randperm(self.count, generator=generator).tolist()
            yield order[place * self.batch_size : (place + 1) * self.batch_size][rank::world]


class _TensorBatches:
    """Yield batches of images in memory, with their indices; no collation, no workers."""

    def __init__(self, images: Tensor, sampler: SeededBatches) -> None:
        self.images, self.sampler = images, sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((self.images[indices], torch.tensor(indices)) for indices in self.sampler)


def count_images(images: Tensor | DataLoader) -> int:
    """Count the images. Raises ``InputError`` where there are none, and for a stream."""
    if isinstance(images, DataLoader) and isinstance(images.dataset, IterableDataset):
        raise InputError(
            "the minibatch solver draws batches in random order: give a dataset with indices, not a stream"
        )
    count = len(images) if isinstance(images, Tensor) else len(cast(Sized, images.dataset))
    if count == 0:
        raise InputError("there are no calibration images")
    return count


def make_loader(images: Tensor | DataLoader, sampler: SeededBatches) -> Any:
    """Make what Lightning iterates over: from the tensor (N, C, H, W), or from the loader's dataset and collation.

    ``sampler`` replaces the loader's own batch size, order and sampler.
    """
    if isinstance(images, Tensor):
        return _TensorBatches(images, sampler)
    return DataLoader(
        images.dataset,
        batch_sampler=sampler,
        num_workers=images.num_workers,
        collate_fn=images.collate_fn,
        pin_memory=images.pin_memory,
        worker_init_fn=images.worker_init_fn,
    )
