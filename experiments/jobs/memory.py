"""Keep the digits in memory, transformed once: decoding them anew each epoch is half the work of a stand-in's job."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lowrank_vit.data import ImageData


class Remembered(TensorDataset):
    """Hold images (N, C, H, W) and labels (N,) as tensors, from which whole batches are taken at once."""

    def __getitems__(self, items: Sequence[Any]) -> tuple[Tensor, ...]:
        """Take a batch, by positions or by draws that hold one."""
        return self[torch.tensor([getattr(item, "position", item) for item in items])]


@functools.lru_cache(maxsize=8)
def _all_images(split: str, settings: tuple[tuple[str, Any], ...]) -> tuple[Tensor, Tensor]:
    """Return all images of a split under one model's data config, in order."""
    data = ImageData("digits", dict(settings))
    dataset = (data.train_dataloader() if split == "train" else data.val_dataloader()).dataset
    items = [dataset[index] for index in range(len(dataset))]  # type: ignore[arg-type]  # it has a length
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])


class DigitsInMemory(ImageData):
    """Serve the digits, neither cropped nor flipped, as ``ImageData`` does: the same batches in the same order, sooner."""

    def train_dataloader(self) -> Any:
        """Serve the training split, shuffled as ``ImageData`` shuffles it."""
        return self._remembered("train", super().train_dataloader())

    def val_dataloader(self) -> Any:
        """Serve the images of the evaluation."""
        return self._remembered(self.evaluation_split, super().val_dataloader())

    def _remembered(self, split: str, loader: DataLoader[Any]) -> DataLoader[Any]:
        images, labels = _all_images(split, tuple(sorted(self.data_config.items())))
        chosen = torch.tensor(loader.dataset.indices)  # type: ignore[attr-defined]  # of TransformedImages
        dataset = Remembered(images[chosen], labels[chosen])
        options: dict[str, Any] = {"collate_fn": lambda batch: batch, "generator": torch.Generator()}
        return DataLoader(dataset, self.batch_size, sampler=loader.sampler, **options)
