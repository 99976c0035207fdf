"""Gates: a multiplier for each unit that can be left out, in a layer that wraps the one whose inputs the units make.

Gates are plain parameters and buffers of the wrapped model, so that checkpoints have them; ``unwrap`` leaves none.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.factors import SplitSite, input_reader
from lowrank_vit.records.sites import HEAD, HIDDEN, INPUT, MIXER, OUTPUT, ROW, VALUE, AttentionSite, MlpSite


@dataclass(frozen=True)
class Place:
    """Describe where a unit's gates sit: ``count`` of them, on ``layer``'s inputs (``repeat`` each), or on its outputs."""

    module: str
    unit: str  # HEAD, VALUE, HIDDEN, INPUT, OUTPUT, MIXER or ROW
    layer: str
    count: int
    repeat: int = 1
    makers: tuple[str, ...] = ()  # the layers whose rows make hidden units
    shape: tuple[int, ...] = ()  # of attention that may become something else: heads, and their width

    @property
    def name(self) -> str:
        return f"{self.module}.{self.unit}"


def places(sites: Sequence[AttentionSite | MlpSite | SplitSite], units: Sequence[str]) -> list[Place]:
    """List the places of all units of the given kinds."""
    found = []
    for site in sites:
        if isinstance(site, SplitSite):
            found.append(Place(site.name, ROW, site.name, site.layer.out_features))
            continue
        if isinstance(site, MlpSite):
            kinds = {HIDDEN: Place(site.name, HIDDEN, site.fc2.name, site.fc2.in_features, makers=site.readers)}
        else:
            kinds = {VALUE: Place(site.name, VALUE, site.proj.name, site.proj.in_features)}
            if not site.dense_logits:  # a head can go where its queries and keys can
                kinds[HEAD] = Place(site.name, HEAD, site.proj.name, site.qkv.heads, site.head_width)
        output, reader = site.linears[-1], input_reader(site)
        kinds[OUTPUT] = Place(site.name, OUTPUT, output.name, output.out_features)
        if reader is not None:
            kinds[INPUT] = Place(site.name, INPUT, reader.name, reader.in_features)
        found += [kinds[unit] for unit in units if unit in kinds]
        if MIXER in units and isinstance(site, AttentionSite) and site.window_size is None and not site.dense_logits:
            found.append(Place(site.name, MIXER, site.name, 3, shape=(site.qkv.heads, site.head_width)))
    return found


class Gate(nn.Module):
    """Hold the multipliers of a unit's parts, and how much each is worth. A subclass says how they are made."""

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

    def tensors(self) -> dict[str, Tensor]:
        """Return what else was learnt, from which a smaller module is made; usually nothing."""
        return {}

    def around(self, layer: nn.Module) -> "GatedLayer":
        """Wrap a layer in one that applies the gates."""
        return GatedLayer(layer)

    def channels(self) -> Tensor:
        """Return the multipliers of the layer's channels, (count * repeat,)."""
        return self().repeat_interleave(self.place.repeat)


class MaskGate(Gate):
    """Hold multipliers 0 and 1 that training does not move: a method changes ``mask`` between steps.

    The layer's weights that read closed parts still get their gradients, as if those were open.
    """

    mask: Tensor

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.register_buffer("mask", torch.ones(place.count))

    def forward(self) -> Tensor:
        return self.mask

    def open(self) -> Tensor:
        return self.mask > 0


class RowGate(MaskGate):
    """Hold a mask of rows of a layer's weight. A subclass makes the weight of a low-rank part and of these rows."""

    def split(self, weight: Tensor) -> None:
        """Find the low-rank part of a layer's weight, (d, n)."""
        raise NotImplementedError

    def joined(self, weight: Tensor) -> Tensor:
        """Return the weight that the layer multiplies by, (d, n), made of its own weight and the low-rank part."""
        raise NotImplementedError


class GatedLayer(nn.Module):
    """Wrap a linear layer whose inputs, or outputs, are multiplied by gates, or whose weight has gates on its rows."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer
        self.inputs: Gate | None = None
        self.outputs: Gate | None = None
        self.rows: RowGate | None = None
        self.makers: tuple[Any, ...] = ()  # in a tuple, so that they are no submodules

    def forward(self, x: Tensor) -> Tensor:
        if self.rows is not None:
            y: Tensor = F.linear(x, self.rows.joined(self.layer.weight), self.layer.bias)
        elif isinstance(self.inputs, MaskGate):
            weight, mask = self.layer.weight, self.inputs.channels().to(x.dtype)
            y = F.linear(x, weight.detach() * mask + (weight - weight.detach()), self.layer.bias)
        elif self.inputs is not None:
            y = self.layer(x * self.inputs.channels().to(x.dtype))
        else:
            y = self.layer(x)
        return y if self.outputs is None else y * self.outputs().to(y.dtype)


def wrap(model: nn.Module, gates: Mapping[str, Gate]) -> None:
    """Put gates, by their units' names, around the layers of a model, in place."""
    for gate in gates.values():
        name = gate.place.layer
        layer = model.get_submodule(name)
        if not isinstance(layer, GatedLayer):
            weight = next(layer.parameters())
            layer = gate.around(layer).to(weight.device)
            replace_module(model, name, layer)
        makers = (model.get_submodule(maker) for maker in gate.place.makers)
        layer.makers += tuple(maker.layer if isinstance(maker, GatedLayer) else maker for maker in makers)
        if isinstance(gate, RowGate):
            gate.split(layer.layer.weight)
        setattr(layer, {OUTPUT: "outputs", ROW: "rows"}.get(gate.place.unit, "inputs"), gate.to(weight.device))


def unwrap(model: nn.Module) -> None:
    """Put the original layers back; weights with gates on their rows are joined."""
    for name, module in list(model.named_modules()):
        if isinstance(module, GatedLayer):
            if module.rows is not None:
                module.layer.weight.data = module.rows.joined(module.layer.weight).detach()
            replace_module(model, name, module.layer)


@contextmanager
def gated(model: nn.Module, gates: Mapping[str, Gate]) -> Iterator[None]:
    """Put gates into a model within the block."""
    wrap(model, gates)
    try:
        yield
    finally:
        unwrap(model)
