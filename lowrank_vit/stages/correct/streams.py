"""The streams of a dense and of a smaller model, side by side on the disk."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Self

import torch
from torch import Tensor

from lowrank_vit.runtime.spill import Spill


class Streams:
    """What both models add to, batch by batch, (B, ..., n); gone from the disk after the ``with`` block."""

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
        """Return both for one batch."""
        return self.dense[place].to(device), self.small[place].to(device)

    def put(self, place: int, dense: Tensor, small: Tensor) -> None:
        """Set both for one batch."""
        self.dense[place], self.small[place] = dense, small

    def copy_to(self, other: Streams) -> Streams:
        """Copy both to ``other``, and return that."""
        for place, pair in enumerate(zip(self.dense, self.small, strict=True)):
            other.put(place, *pair)
        return other
