"""Gates: a multiplier for each unit that can be left out, in a layer that wraps the one whose inputs the units make.

Gates are plain parameters and buffers of the wrapped model, so that checkpoints have them; ``unwrap`` leaves none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.layers import HEAD, HIDDEN, OUTPUT, VALUE, AttentionSite, MlpSite


@dataclass(frozen=True)
class Place:
    """Where the gates of a unit sit: ``count`` of them, on the inputs of ``layer`` (``repeat`` each), or on its outputs."""

    module: str
    unit: str  # HEAD, VALUE, HIDDEN or OUTPUT
    layer: str
    count: int
    repeat: int = 1

    @property
    def name(self) -> str:
        """Return the unit's name, as in a plan."""
        return f"{self.module}.{self.unit}"


def places(sites: Sequence[AttentionSite | MlpSite], units: Sequence[str]) -> list[Place]:
    """List the places of all units of the given kinds."""
    found = []
    for site in sites:
        if isinstance(site, MlpSite):
            layer, kinds = site.fc2, {HIDDEN: (site.fc2.in_features, 1)}
        else:
            layer, kinds = site.proj, {VALUE: (site.proj.in_features, 1)}
            if not site.dense_logits:  # a head can go where its queries and keys can
                kinds[HEAD] = (site.qkv.heads, site.head_width)
        kinds[OUTPUT] = (layer.out_features, 1)
        found += [Place(site.name, unit, layer.name, *kinds[unit]) for unit in units if unit in kinds]
    return found


class Gate(nn.Module):
    """The multipliers of a unit's parts, and how much each is worth. A subclass says how they are made."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    def forward(self) -> Tensor:
        """Return the multipliers, (count,): 1 keeps a part as it is, 0 leaves it out."""
        raise NotImplementedError

    def scores(self) -> Tensor:
        """Return what each part is worth, (count,), not negative: one threshold on those of all gates hardens a model."""
        raise NotImplementedError

    def open(self) -> Tensor:
        """Tell which parts are open, (count,), bool."""
        raise NotImplementedError


class GatedLayer(nn.Module):
    """A layer whose inputs, or outputs, are multiplied by gates."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.inputs: Gate | None = None
        self.outputs: Gate | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (..., n) to (..., d)."""
        if self.inputs is not None:
            x = x * self.inputs().repeat_interleave(self.inputs.place.repeat).to(x.dtype)
        y: Tensor = self.layer(x)
        return y if self.outputs is None else y * self.outputs().to(y.dtype)


def wrap(model: nn.Module, gates: Mapping[str, Gate]) -> None:
    """Put gates, by their units' names, around the layers of a model, in place."""
    for gate in gates.values():
        name = gate.place.layer
        layer = model.get_submodule(name)
        if not isinstance(layer, GatedLayer):
            weight = next(layer.parameters())
            layer = GatedLayer(layer).to(weight.device)
            replace_module(model, name, layer)
        setattr(layer, "outputs" if gate.place.unit == OUTPUT else "inputs", gate.to(weight.device))


def unwrap(model: nn.Module) -> None:
    """Put the layers back in the place of those with gates."""
    for name, module in list(model.named_modules()):
        if isinstance(module, GatedLayer):
            replace_module(model, name, module.layer)


@contextmanager
def gated(model: nn.Module, gates: Mapping[str, Gate]) -> Iterator[None]:
    """Put gates into a model within the block."""
    wrap(model, gates)
    try:
        yield
    finally:
        unwrap(model)


def kept_heads(width: int, kept: Tensor) -> int:
    """Count the heads, ``width`` dimensions each, that have any of the dimensions ``kept``, (heads * width,), bool."""
    return int(kept.unflatten(0, (-1, width)).any(1).sum())


def everything(count: int) -> Tensor:
    """Return a mask that keeps all, (count,)."""
    return torch.ones(count, dtype=torch.bool)
