"""Two processes in one: the second goes first, and what it hands to the others is added to what the first one has."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def become(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    """Let ``torch.distributed`` say that this is one of several processes."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda *_: rank)
    monkeypatch.setattr(dist, "get_world_size", lambda *_: world)


def beside_another(monkeypatch: pytest.MonkeyPatch, work: Callable[[int], T]) -> T:
    """``work(0)`` as process 0 of two, where the other one does ``work(1)``: for work that tells the others sums only."""
    told: list[Tensor] = []

    def keep(tensor: Tensor, *_: Any) -> None:
        told.append(tensor.clone())

    def add(tensor: Tensor, *_: Any) -> None:
        other = told.pop(0)
        assert other.shape == tensor.shape
        tensor += other

    with monkeypatch.context() as patch:
        for rank, all_reduce in ((1, keep), (0, add)):
            become(patch, rank, 2)
            patch.setattr(dist, "all_reduce", all_reduce)
            result = work(rank)
    assert not told, "the processes told each other different numbers of sums"
    return result
