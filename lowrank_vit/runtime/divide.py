"""Work divided among the processes of a run, by cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import gathered, rank_and_world
from lowrank_vit.runtime.serialization import from_bytes, to_bytes

T = TypeVar("T")


def split(costs: Mapping[str, float], world: int) -> list[list[str]]:
    """Divide the names among ``world`` processes: the most expensive first, each to the process with the least to do.

    >>> split({"a": 1, "b": 5, "c": 3, "d": 3}, 2)
    [['b', 'a'], ['c', 'd']]
    """
    shares: list[list[str]] = [[] for _ in range(world)]
    loads = [0.0] * world
    for name in sorted(costs, key=costs.__getitem__, reverse=True):
        least = loads.index(min(loads))
        shares[least].append(name)
        loads[least] += costs[name]
    return shares


def divide_work(
    costs: Mapping[str, float], work: Callable[[Sequence[str]], Mapping[str, T]], device: torch.device
) -> dict[str, T]:
    """Run ``work`` for all names, each in one process; every process gets all results, in the given order.

    ``work`` must not wait for other processes. Its ``InputError`` in one process is raised in all.
    """
    rank, world = rank_and_world()
    if world == 1:
        return dict(work(list(costs)))
    mine = set(split(costs, world)[rank])
    error = None
    results: Mapping[str, T] = {}
    try:
        results = work([name for name in costs if name in mine])
    except InputError as refused:
        error = str(refused)
    everything: dict[str, T] = {}
    for data, refusal in gathered((to_bytes(dict(results)), error)):
        if refusal is not None:
            raise InputError(refusal)
        everything |= from_bytes(data, device)
    return {name: everything[name] for name in costs}
