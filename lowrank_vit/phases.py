"""What a phase of a compression finds: shared out among processes, and kept on disk until the whole is saved.

Both go through the same bytes, from which only tensors, plain values and the records named here can come back.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from lowrank_vit.cache import model_hash
from lowrank_vit.compensate import COMPENSATIONS, State
from lowrank_vit.compensate.solve import Solution
from lowrank_vit.errors import InputError
from lowrank_vit.files import write_bytes
from lowrank_vit.parallel import agreed, gathered, is_first, rank_and_world
from lowrank_vit.parts import Directions, Logits, Part
from lowrank_vit.provenance import source_hash
from lowrank_vit.records import Factors, Moments

T = TypeVar("T")
RECORDS = (Factors, Directions, Part, Logits, State, Solution)


def to_bytes(value: Any) -> bytes:
    """Tensors, plain values, ``RECORDS`` and kinds of Z, in containers, as bytes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes, device: torch.device) -> Any:
    """What ``to_bytes`` was given, its tensors on ``device``; anything else is refused, and nothing is executed."""
    known: list[Any] = [*RECORDS, *(COMPENSATIONS.get(name) for name in COMPENSATIONS.names())]
    with torch.serialization.safe_globals(known):
        return torch.load(io.BytesIO(data), map_location=device, weights_only=True)


def split(costs: Mapping[str, float], world: int) -> list[list[str]]:
    """The names for each of ``world`` processes: the dearest first, each to whom has least to do.

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


def shared(
    costs: Mapping[str, float], work: Callable[[Sequence[str]], Mapping[str, T]], device: torch.device
) -> dict[str, T]:
    """What ``work`` finds for all names, each done by one process; every process gets all of it, in the given order.

    ``work`` must not wait for other processes. Its ``InputError`` in one process is raised in all.
    """
    rank, world = rank_and_world()
    if world == 1:
        return dict(work(list(costs)))
    own = set(split(costs, world)[rank])
    error = None
    found: Mapping[str, T] = {}
    try:
        found = work([name for name in costs if name in own])
    except InputError as refused:
        error = str(refused)
    everything: dict[str, T] = {}
    for data, refusal in gathered((to_bytes(dict(found)), error)):
        if refusal is not None:
            raise InputError(refusal)
        everything |= from_bytes(data, device)
    return {name: everything[name] for name in costs}


def identity(model: torch.nn.Module, moments: Mapping[str, Moments], *plain: Any) -> str:
    """A hash of all that a phase depends on: weights, statistics, plain values, and the package's source."""
    digest = hashlib.sha256(json.dumps([source_hash(), model_hash(model), *plain], sort_keys=True).encode())
    for name, own in sorted(moments.items()):
        digest.update(f"{name} {own.images} {own.tokens} {sorted(own.sums)}".encode())
        for _, total in sorted(own.sums.items()):
            digest.update(total.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Phases:
    """Phases of one compression, in ``folder`` by name and ``identity``; without a folder nothing is kept."""

    folder: Path | None
    identity: str
    device: torch.device

    def of(self, *plain: Any) -> Phases:
        """The same for phases that depend on more: plain values."""
        told = json.dumps([self.identity, *plain], sort_keys=True)
        return replace(self, identity=hashlib.sha256(told.encode()).hexdigest()[:32])

    def place(self, name: str) -> Path | None:
        """Where the phase, or what it needs meanwhile, is kept."""
        return None if self.folder is None else self.folder / f"{name}-{self.identity}"

    def __call__(self, name: str, compute: Callable[[], T]) -> T:
        """What was kept of the phase, else what ``compute`` finds, which is then kept."""
        place = self.place(name)
        path = None if place is None else place.with_suffix(".pt")
        known = agreed(path.read_bytes() if path is not None and is_first() and path.is_file() else None)
        if known is not None:
            found: T = from_bytes(known, self.device)
            return found
        value = compute()
        if path is not None and is_first():
            write_bytes(path, to_bytes(value))
        return value
