"""What units share: outputs made from a subset of inputs, parts as mixtures of their sizes, and the entry of a report.

A search learns the shares of a mixture. What a smaller module computes is what the dense one computes with other weights: a
layer with its product of factors, heads with queries that compare less, an output layer that reads what is kept. So nothing
is folded, and every family is the same.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import family_of, survey
from lowrank_vit.architectures.linears import dense_linear, without_value_bias
from lowrank_vit.linalg.elimination import refitted
from lowrank_vit.linalg.mixtures import Gated, Mixed, MixedQueries, Mixture, first_kept
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.fold import AttentionWeights, fold_attention, fold_values
from lowrank_vit.modules.partial_linear import ScatterOutput
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.records.costs import UnitCosts
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.factors import Directions, Factors, InputSubset, Logits
from lowrank_vit.records.report import LayerEntry
from lowrank_vit.records.sites import AttentionSite, MlpSite, Site
from lowrank_vit.units.base import Folded, Method, Needs, Ranks, Settings, Unit, layer_entry

Sizes = Sequence[int | None]


def mixed_rank(model: nn.Module, site: Site, factors: Factors, mean: Tensor | None, sizes: Sizes) -> Mixture:
    """Return the mixture of a single layer's ranks, and of the bias where it takes up the ``mean`` of what is lost, (n,)."""
    layer, (u, v) = get_linear(model, site), factors.cut(len(factors.loss) - 1)
    kept = first_kept(sizes, u.shape[1]).to(u)
    mixture: Mixture = {_name(model, site, "weight"): Gated(*(each.to(layer.weight) for each in (u, v, kept)))}
    if mean is None:
        return mixture
    weight, bias = dense_linear(model, site)
    biases = bias + mean @ weight - ((mean @ u) * kept) @ v.T
    return {**mixture, _name(model, site, "bias"): Mixed(biases.to(layer.weight))}


def mixed_outputs(model: nn.Module, output: Site, subset: InputSubset, sizes: Sizes, biases: bool = True) -> Mixture:
    """Return the mixture of an output layer that is refitted on those of its inputs, or of their directions, that stay.

    ``biases``: whether the smaller module has the dense one's; ``subset.mean`` is then what the inputs have of them.
    """
    weight, bias = dense_linear(model, output)
    approximations = [refitted(subset, subset.units.kept(size))[1] for size in sizes]
    whole = bias + subset.mean @ weight if biases else torch.zeros_like(bias)
    shifts = [whole - subset.mean @ each for each in approximations]
    like = get_linear(model, output).weight
    return {
        _name(model, output, "weight"): Mixed(torch.stack([each.T for each in approximations]).to(like)),
        _name(model, output, "bias"): Mixed(torch.stack(shifts).to(like)),
    }


def mixed_logits(model: nn.Module, layer: Site, logits: Logits, sizes: Sizes, biases: bool = True) -> Mixture:
    """Return the mixture of the directions in which queries and keys are compared; ``layer`` makes queries first."""
    linear = get_linear(model, layer)
    matrices = torch.stack([_compared(logits, size) for size in sizes]).to(linear.weight)
    mixture: Mixture = {_name(model, layer, "weight"): MixedQueries(linear.weight.detach(), matrices)}
    owner = layer.name.rpartition(".")[0]
    names = [_name(model, layer, "bias"), f"{owner}.q_bias"]  # the latter: BEiT's, EVA's and Swin V2's
    of_biases = matrices if biases else torch.zeros_like(matrices)
    found = {name: each.detach() for name, each in model.named_parameters() if name in names}
    return {**mixture, **{name: MixedQueries(each, of_biases) for name, each in found.items()}}


def _compared(logits: Logits, size: int | None) -> Tensor:
    """Return B of every head, (h, s, s), with which ``q^T B k`` replaces ``q^T k``; the identity if all is kept."""
    heads, width = logits.query.shape[:2]
    if size is None:
        return torch.eye(width, dtype=logits.query.dtype, device=logits.query.device).expand(heads, -1, -1)
    kept = logits.units.kept(size)
    query, key = logits.pair(kept)
    chosen = torch.zeros(heads * width).to(query)
    chosen[kept] = 1.0
    return (query * chosen.view(heads, 1, width)) @ key.mT


def _name(model: nn.Module, site: Site, parameter: str) -> str:
    """Return the name of a layer's parameter; of a smaller layer, of the one that makes its output."""
    made = ".up" if hasattr(model.get_submodule(site.name), "up") else ""
    return f"{site.name}{made}.{parameter}"


class Directed(Protocol):
    """Define the interface of what is found of a part whose directions are kept one by one."""

    @property
    def units(self) -> Directions:
        """Return their order, and what every number of them loses."""


Part = TypeVar("Part", bound=Directed)


def whole_modules(model: nn.Module, settings: Settings) -> list[AttentionSite | MlpSite]:
    """Find attention modules and MLPs. Raises ``InputError`` for one that cannot be taken, unless ``partial``."""
    return survey(model)[0] if settings.partial else family_of(model).modules(model)


@dataclass(frozen=True)
class OutputApproximation:
    """Hold what a smaller module keeps of the inputs that the dense output layer sees: ``(x - offset) columns``."""

    columns: Tensor  # shape: (n, s)
    offset: Tensor  # shape: (n,), the values' bias, which the smaller attention does not add


@dataclass(frozen=True)
class ModuleCut(Folded):
    """Hold a module at its sizes."""

    kept: OutputApproximation


@dataclass(frozen=True)
class ModuleUnit(Unit[Method, Part]):
    """Describe the parts of an attention module or an MLP."""

    site: AttentionSite | MlpSite

    @property
    def linears(self) -> tuple[Site, ...]:
        return self.site.linears

    def named(self, part: str) -> str:
        return f"{self.name}.{part}"

    def costs(self) -> dict[str, UnitCosts]:
        """Return the cost of each part that the method reduces."""
        return self.site.costs(self.tokens)

    def report_needs(self) -> Needs:
        return {self.linears[-1].name: frozenset({"input_second"})}

    def curves(self) -> list[ErrorCurve]:
        curves, step = [], self.settings.rank_multiple
        for name, costs in self.costs().items():
            blank = Directions(torch.arange(costs.count), torch.zeros(costs.count + 1))
            directions = blank if self.parts is None else self.parts[self.named(name)].units
            curves.append(directions.curve(self.named(name), costs, step, self.settings.pivoted))
        return curves

    def probe_rank(self, part: str) -> int:
        directions = self.parts[part].units
        return len(directions.order) // 2 // directions.multiple * directions.multiple

    def entry(self, cut: ModuleCut | None, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        """Make the module's entry of the report.

        The error is that of the compressed output layer for the inputs of the dense model: what the values, or the hidden
        units, lose, but not what queries and keys lose.
        """
        site, output = self.site, self.linears[-1]
        (weight, bias), (approximation, shift) = (dense_linear(model, output) for model in (self.model, compressed))
        layer = compressed.get_submodule(output.name)
        if isinstance(layer, ScatterOutput):
            approximation, shift = layer.spread(approximation), layer.spread(shift)
        if cut is not None:
            approximation = cut.kept.columns @ approximation
            shift = shift - cut.kept.offset @ approximation
        errors = self.output_errors(output.name, weight, approximation, shift - bias)
        whole, params = (parameter_count(model.get_submodule(site.name)) for model in (self.model, compressed))
        rank = None if cut is None else ranks[self.named(list(self.costs())[-1])]
        details = {"dense_params": whole, **self.details(ranks)}
        return layer_entry(site.name, (site.in_features, output.out_features), rank, params, errors, details)

    def details(self, ranks: Ranks) -> dict[str, float | int | None]:
        details: dict[str, float | int | None] = {}
        for name, costs in self.costs().items():
            found, count = self.parts[self.named(name)], ranks[self.named(name)]
            details[name] = costs.count if count is None else count
            details[f"{name}_of"] = costs.count
            details[f"{name}_predicted_loss"] = 0.0 if count is None else float(found.units.loss[count])
            if isinstance(found, InputSubset):
                details["ridge"] = found.ridge
        return details


def smaller_attention(
    model: nn.Module,
    site: AttentionSite,
    dense: AttentionWeights | None,
    kept: Tensor,
    output: tuple[Tensor, Tensor],
    basis: Tensor | None = None,
    logits: tuple[Logits, int | None] | None = None,
) -> ModuleCut:
    """Make an attention module of the ``kept`` dimensions, or directions, of its values.

    ``dense``: its weights; None where queries and keys stay as they are. ``output``: the output layer's weight and bias on
    what is kept. ``basis``: (h, s, s), of the directions. ``logits``: the directions in which queries and keys are
    compared, and their number; without it, all dimensions.
    """
    inner, whole = site.proj.in_features, Logits.whole(site.qkv.heads, site.head_width, output[0])
    basis = whole.query if basis is None else basis
    columns = torch.block_diag(*basis)[:, kept]
    if dense is None:
        before, attention = dense_linear(model, site.qkv), copy.deepcopy(model.get_submodule(site.name))
        value_bias = before[1][-inner:]
        small = fold_values(site, without_value_bias(attention), before, basis, kept, *output)
        offset = torch.zeros_like(value_bias) if site.qkv.bias else value_bias
        return ModuleCut(small, OutputApproximation(columns, offset))
    compared, count = (whole, None) if logits is None else logits
    # where a head passes nothing on, its queries and keys would do nothing: those of the others take their place
    every = torch.arange(inner, device=kept.device)
    alive = torch.isin(every // site.head_width, kept // site.head_width)
    directions = compared.units.kept(count, alive)
    small = fold_attention(site, dense, compared.pair(directions), directions, basis, kept, *output)
    return ModuleCut(small, OutputApproximation(columns, dense.bias[-inner:]))
