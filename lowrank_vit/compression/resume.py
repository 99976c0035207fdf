"""Phases of a compression, kept on disk until the model is saved, keyed by the hash of all that they depend on."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from lowrank_vit.modules.counting import model_hash
from lowrank_vit.records.moments import Moments
from lowrank_vit.runtime.errors import amount
from lowrank_vit.runtime.files import write_bytes
from lowrank_vit.runtime.processes import agreed, is_first
from lowrank_vit.runtime.progress import say
from lowrank_vit.runtime.provenance import source_hash
from lowrank_vit.runtime.tensors import from_bytes, to_bytes

T = TypeVar("T")
DECOMPOSED, MEASURED = "decompose", "measured"  # names of phases


def identity(model: torch.nn.Module, moments: Mapping[str, Moments], *plain: Any) -> str:
    """Return the hash of all that a phase depends on: weights, statistics, plain values, and the package's source."""
    digest = hashlib.sha256(json.dumps([source_hash(), model_hash(model), *plain], sort_keys=True).encode())
    for name, layer in sorted(moments.items()):
        digest.update(f"{name} {layer.images} {layer.tokens} {sorted(layer.sums)}".encode())
        for _, total in sorted(layer.sums.items()):
            digest.update(total.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class ResumeStore:
    """Keep the phases of one compression in ``folder`` by name and ``identity``; without a folder nothing is kept."""

    folder: Path | None
    identity: str
    device: torch.device

    def keyed_by(self, *plain: Any) -> "ResumeStore":
        text = json.dumps([self.identity, *plain], sort_keys=True)
        return replace(self, identity=hashlib.sha256(text.encode()).hexdigest()[:32])

    def place(self, name: str) -> Path | None:
        """Return the path for the phase and its temporary files; None without a folder."""
        return None if self.folder is None else self.folder / f"{name}-{self.identity}"

    def __call__(self, name: str, compute: Callable[[], T]) -> T:
        """Return the phase's stored result; otherwise compute and store it."""
        place = self.place(name)
        path = None if place is None else place.with_suffix(".pt")
        kept = agreed(path.read_bytes() if path is not None and is_first() and path.is_file() else None)
        if kept is not None:
            return from_bytes(kept, self.device)
        value = compute()
        if path is not None and is_first():
            write_bytes(path, to_bytes(value))
        return value


def tell_resumed(store: ResumeStore) -> None:
    """Print, in one line on the error stream, what a compression goes on from."""
    place = store.place(DECOMPOSED)
    if place is None or not place.with_suffix(".pt").is_file():
        return
    count = len(list(place.parent.glob(f"{MEASURED}_*.pt")))
    losses = f", and the losses of {amount(count, 'unit')}" if count else ""
    say(f"resuming {place.parent}: statistics and factors are there{losses}")
