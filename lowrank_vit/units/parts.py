"""Inner parts of an attention module or an MLP: values' dimensions, whole heads, hidden units, inputs, outputs.

A part goes with what writes it and what reads it: a hidden unit with its rows of the first layer and its column of the
second, a head with its queries, keys and values, an input with its columns of the layers that read it, an output with its
row and its bias. One class cuts them all; the kinds below say which parts they order, and what a method is asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.architectures.linears import dense_linear
from lowrank_vit.linalg.elimination import refitted
from lowrank_vit.linalg.mixtures import Mixture
from lowrank_vit.modules.fold import AttentionWeights, MlpWeights, fold_mlp
from lowrank_vit.modules.partial_linear import ScatterOutput, SelectInput
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.costs import Cost, UnitCosts
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.factors import Directions, InputSubset, PartsInOrder, WholeHeads, input_reader
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import LayerEntry
from lowrank_vit.records.sites import HEAD, HIDDEN, INPUT, PART, VALUE, AttentionSite, MlpSite, PoolSite, Site
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.decompose import (
    COLUMNS,
    GATED,
    MLPS,
    WHOLE_HEADS,
    ColumnChoice,
    HeadChoice,
    MlpDecomposition,
    PartChoice,
)
from lowrank_vit.stages.gates.expected import dense_cost, pruned
from lowrank_vit.units.base import UNITS, Method, Needs, Ranks, Settings
from lowrank_vit.units.modules import (
    Directed,
    ModuleCut,
    ModuleUnit,
    OutputApproximation,
    mixed_outputs,
    smaller_attention,
    whole_modules,
)

Weights = TypeVar("Weights", AttentionWeights, MlpWeights)


class Ordered(Directed, Protocol):
    """Define the interface of parts in order."""

    @property
    def mean(self) -> Tensor | None:
        """Return the mean of the output layer's inputs, if its bias takes up what those that go add on average."""


Found = TypeVar("Found", bound=Ordered)


@dataclass(frozen=True)
class Kept:
    """Hold which parts stay, by their indices, ascending; None: all of them. ``mean``: of the module's inputs, (n,)."""

    inner: Tensor  # of the output layer's inputs
    outputs: Tensor | None = None
    inputs: Tensor | None = None
    mean: Tensor | None = None

    def means_in(self, dense: Weights) -> Weights:
        """Let the bias take up what the inputs that go add on average."""
        if self.inputs is None or self.mean is None:
            return dense
        mean, weight, kept = self.mean, dense.weight, self.inputs
        return replace(dense, bias=dense.bias + (mean @ weight - mean[kept] @ weight[kept]))


def _linear(module: nn.Module, name: str) -> nn.Linear:
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _some(kept: Tensor | None, count: int) -> Tensor | None:
    """Return the indices of what stays; None where that is everything."""
    return kept if kept is not None and len(kept) < count else None


def _mlp(model: nn.Module, site: MlpSite, kept: Kept, output: tuple[Tensor, Tensor]) -> ModuleCut:
    """Make the MLP; with fewer inputs its first layer gets a bias."""
    dense, columns = family_of(model).mlp_weights(model, site), torch.eye(site.fc2.in_features).to(output[0])
    if kept.inputs is not None:
        site = replace(site, inputs=(replace(site.inputs[0], bias=True),))
    small = fold_mlp(site, kept.means_in(dense), kept.inner, *output)
    return ModuleCut(small, OutputApproximation(columns[:, kept.inner], columns.new_zeros(len(columns))))


@dataclass(frozen=True)
class PartUnit(ModuleUnit[Method, Found]):
    """Describe parts of one attention module or MLP, in the order that a method gives them."""

    kind: ClassVar[str] = PART  # of its parts

    @classmethod
    def find(cls, model: nn.Module, method: Method, settings: Settings, sites: str) -> "list[PartUnit[Method, Found]]":
        return [cls(site, method, settings) for site in whole_modules(model, settings) if cls.takes(site)]

    @classmethod
    def takes(cls, site: AttentionSite | MlpSite) -> bool:
        """Tell whether a module has such parts."""
        raise NotImplementedError

    @property
    def part(self) -> str:
        return self.named(self.kind)

    @property
    def linears(self) -> tuple[Site, ...]:
        return (self.site.linears[-1],)

    @property
    def width(self) -> int:
        """Count the inputs of the output layer that an inner part is."""
        return 1

    def needs(self) -> Needs:
        """Return the statistics of the output layer that the method and the report read; of others, the mean suffices."""
        own, (*others, output) = self.method.needs, (site.name for site in self.linears)
        own = own if isinstance(own, frozenset) else own[-1]
        return dict.fromkeys(others, frozenset[str]()) | {output: own | {"input_second"}}

    def kept(self, rank: int | None) -> Kept:
        """Return the parts that stay at a rank."""
        raise NotImplementedError

    def output(self, kept: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output layer's weight, (kept, d), and bias, (d,), on what is kept: by default as they were."""
        if (mean := self.found.mean) is not None:
            bias = bias + mean @ weight - mean[kept] @ weight[kept]
        return weight[kept], bias

    def read(self, weight: Tensor) -> InputSubset | None:
        """Return the inputs of the output layer in order; None where there are other parts than these."""
        return None

    def spread(self, parts: Tensor) -> Tensor:
        """Return the inputs of the output layer that inner parts are, in the same order."""
        return (parts[:, None] * self.width + torch.arange(self.width).to(parts)).flatten()

    def cut(self, ranks: Ranks) -> ModuleCut:
        site, (*_, layer) = self.site, self.linears
        kept = self.kept(ranks[self.part])
        output = self.output(kept.inner, *dense_linear(self.model, layer))
        if attention := isinstance(site, AttentionSite):
            whole = None if site.dense_logits else family_of(self.model).attention_weights(self.model, site)
            dense = None if whole is None else kept.means_in(whole)
            cut = smaller_attention(self.model, site, dense, kept.inner, output)
        else:
            cut = _mlp(self.model, site, kept, output)
        if kept.inputs is not None:
            for name in ("query", "key_value") if attention else ("fc1",):
                replace_module(cut.module, name, SelectInput.of(_linear(cut.module, name), kept.inputs))
        if kept.outputs is not None:
            name = "proj" if attention else "fc2"
            replace_module(cut.module, name, ScatterOutput.of(_linear(cut.module, name), kept.outputs))
        return cut

    def mixture(self, part: str, sizes: Sequence[int | None]) -> Mixture:
        layer = self.linears[-1]
        read = self.read(dense_linear(self.model, layer)[0])
        if read is None:
            return super().mixture(part, sizes)
        return mixed_outputs(self.model, layer, read, [None if size is None else size * self.width for size in sizes])


def _headed(site: AttentionSite) -> bool:
    """Tell whether queries and keys can be removed with the values."""
    return not isinstance(site, PoolSite) and not site.dense_logits


@UNITS.register("mlp")
@dataclass(frozen=True)
class HiddenUnit(PartUnit[MlpDecomposition, InputSubset]):
    """Describe the hidden units of one MLP, on which the second layer may be refitted."""

    site: MlpSite

    methods: ClassVar[Registry[type[MlpDecomposition]]] = MLPS
    kind: ClassVar[str] = HIDDEN

    @classmethod
    def takes(cls, site: AttentionSite | MlpSite) -> bool:
        return isinstance(site, MlpSite)

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, InputSubset]:
        (weight, _), dense = dense_linear(model, self.site.fc2), family_of(model).mlp_weights(model, self.site)
        return {self.part: self.method(self.site, weight, moments[self.site.fc2.name], (dense.weight, dense.bias))}

    def kept(self, rank: int | None) -> Kept:
        return Kept(self.found.units.kept(rank))

    def output(self, kept: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        rows, approximation = refitted(self.found, kept)
        return rows, bias + self.found.mean @ (weight - approximation)

    def read(self, weight: Tensor) -> InputSubset:
        return self.found


@UNITS.register("whole_heads")
@dataclass(frozen=True)
class WholeHeadUnit(PartUnit[HeadChoice, WholeHeads]):
    """Describe the heads of one attention module: what is left is the dense module with fewer of them."""

    site: AttentionSite

    methods: ClassVar[Registry[type[HeadChoice]]] = WHOLE_HEADS
    kind: ClassVar[str] = HEAD

    @classmethod
    def takes(cls, site: AttentionSite | MlpSite) -> bool:
        return isinstance(site, AttentionSite) and _headed(site)

    @property
    def width(self) -> int:
        return self.site.head_width

    def costs(self) -> dict[str, UnitCosts]:
        return {HEAD: self.site.head_costs(self.tokens)}

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, WholeHeads]:
        return {self.part: self.method(self.site, moments[self.site.proj.name])}

    def kept(self, rank: int | None) -> Kept:
        return Kept(self.spread(self.found.units.kept(rank)))

    def read(self, weight: Tensor) -> InputSubset:
        """Return the dimensions of the values, head by head."""
        order = self.spread(self.found.units.order)
        return InputSubset.pruned(Directions(order, weight.new_zeros(len(order) + 1)), weight)


@dataclass(frozen=True)
class OneOrder(PartUnit[Method, PartsInOrder]):
    """Describe two kinds of parts under one order, since each costs what the others leave of it.

    The best of either kind come first, as one rank, so that there is always one of either.
    """

    @property
    def counts(self) -> tuple[int, ...]:
        """Count the inner parts, and those of the other kind, where there are any."""
        raise NotImplementedError

    def blank(self) -> PartsInOrder:
        """Return the parts in some order."""
        inner, *others = (torch.linspace(1, 0, count) for count in self.counts)
        return PartsInOrder.by_score(inner, others[0] if others else None, torch.zeros(self.linears[-1].in_features))

    def exact(self, found: PartsInOrder) -> Tensor:
        """Count the parameters of every rank."""
        raise NotImplementedError

    def costs(self) -> dict[str, UnitCosts]:
        """Return the average cost of the parts."""
        dense, count = dense_cost(self.site, self.tokens), sum(self.counts) - len(self.counts) + 1
        return {PART: UnitCosts(count, Cost(dense.parameters // count + 1, dense.macs // count + 1), dense)}

    def curves(self) -> list[ErrorCurve]:
        """Return the curve with exact parameters; multiply-accumulates are those of parts on average."""
        own = self.costs()[PART]
        found = self.blank() if self.parts is None else self.found
        saved = tuple(rank * own.unit.parameters - cost for rank, cost in enumerate(self.exact(found).tolist()))
        return [ErrorCurve(self.part, found.units.loss.cpu(), own.unit, own.dense, saved=saved)]


@UNITS.register("gated")
@dataclass(frozen=True)
class GatedUnit(OneOrder[PartChoice]):
    """Describe the heads of one attention module, or the hidden units of an MLP, and its outputs."""

    methods: ClassVar[Registry[type[PartChoice]]] = GATED

    @classmethod
    def takes(cls, site: AttentionSite | MlpSite) -> bool:
        return isinstance(site, MlpSite) or _headed(site)

    @property
    def width(self) -> int:
        """Return the width of a head, or of a hidden unit."""
        return self.site.head_width if isinstance(self.site, AttentionSite) else 1

    @property
    def counts(self) -> tuple[int, int]:
        output = self.linears[-1]
        return output.in_features // self.width, output.out_features

    def exact(self, found: PartsInOrder) -> Tensor:
        return pruned(self.site, *(count.cpu() for count in found.counts()))

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, PartsInOrder]:
        return {self.part: self.method(self.site, moments[self.linears[-1].name])}

    def kept(self, rank: int | None) -> Kept:
        inner, outputs = self.found.kept(rank)
        return Kept(self.spread(inner), _some(outputs, self.linears[-1].out_features))


@UNITS.register("columns")
@dataclass(frozen=True)
class ColumnUnit(OneOrder[ColumnChoice]):
    """Describe the values' dimensions of one attention module, or the hidden units of an MLP, and its inputs."""

    methods: ClassVar[Registry[type[ColumnChoice]]] = COLUMNS

    @classmethod
    def find(
        cls, model: nn.Module, method: ColumnChoice, settings: Settings, sites: str
    ) -> list[PartUnit[ColumnChoice, PartsInOrder]]:
        """Find the modules. Raises ``InputError`` for factors that are to be pivoted."""
        if settings.pivoted:
            raise InputError("layers that read some of their inputs cannot be pivoted: leave out pivoted")
        return super().find(model, method, settings, sites)

    @classmethod
    def takes(cls, site: AttentionSite | MlpSite) -> bool:
        return not isinstance(site, PoolSite)

    @property
    def linears(self) -> tuple[Site, ...]:
        """Return the layer that reads the module's input, where inputs can be removed, and the output layer."""
        reader, output = input_reader(self.site), self.site.linears[-1]
        return (output,) if reader is None else (reader, output)

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(layer.in_features for layer in reversed(self.linears))

    def exact(self, found: PartsInOrder) -> Tensor:
        site, output, (inner, inputs) = self.site, self.linears[-1], found.counts()
        read, exact = inputs if len(self.linears) > 1 else None, inner
        if isinstance(site, MlpSite):
            exact = pruned(site, inner, output.out_features, read)
        elif site.dense_logits:
            own = site.costs()[VALUE]
            exact = own.fixed.parameters + inner * own.unit.parameters
        else:
            places = torch.where(found.inner, found.index // site.head_width, site.qkv.heads)
            seen = nn.functional.one_hot(places, site.qkv.heads + 1).cumsum(0)[:, :-1] > 0
            heads = torch.cat([seen.new_zeros(1, dtype=torch.long), seen.sum(1)])[found.foremost :]
            exact = pruned(site, heads, output.out_features, read, heads * site.head_width - inner)
        return exact

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, PartsInOrder]:
        *first, output = (moments[site.name] for site in self.linears)
        return {self.part: self.method(output, first[0] if first else None)}

    def kept(self, rank: int | None) -> Kept:
        inner, inputs = self.found.kept(rank)
        return Kept(inner, inputs=_some(inputs, self.site.in_features), mean=self.found.input_mean)

    def entry(self, cut: ModuleCut | None, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        """Make the module's entry of the report, whose rank counts inner parts; its error leaves out the inputs' loss."""
        entry, site = super().entry(cut, ranks, compressed), self.site
        kept, inputs = self.found.kept(ranks[self.part])
        inner = HIDDEN if isinstance(site, MlpSite) else VALUE
        counts = {inner: len(kept), f"{inner}_of": len(self.found.mean)}
        if inputs is not None:
            counts |= {INPUT: len(inputs), f"{INPUT}_of": site.in_features}
        others = {name: value for name, value in entry["details"].items() if name not in (PART, f"{PART}_of")}
        return {**entry, "rank": None if cut is None else len(kept), "details": {**others, **counts}}
