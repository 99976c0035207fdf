"""The streams of a dense and of a smaller model, side by side on the disk."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Self

import torch
from torch import Tensor

from lowrank_vit.runtime.tensors import Spill


class Streams:
    """Keep the streams of both models on disk, batch by batch, (B, ..., n), until the ``with`` block ends."""

    def __init__(self) -> None:
        self.dense, self.small = Spill(), Spill()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            opened.enter_context(self.dense)
            opened.enter_context(self.small)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def __len__(self) -> int:
        return len(self.dense)

    def at(self, place: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return both streams of one batch."""
        return self.dense[place].to(device), self.small[place].to(device)

    def put(self, place: int, dense: Tensor, small: Tensor) -> None:
        """Set both streams of one batch."""
        self.dense[place], self.small[place] = dense, small

    def copy_to(self, other: Streams) -> Streams:
        """Copy both streams to ``other``, and return it."""
        for place, pair in enumerate(zip(self.dense, self.small, strict=True)):
            other.put(place, *pair)
        return other
