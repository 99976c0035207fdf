"""What a kind of unit must have: what can be made smaller in a module, one file for each kind.

A unit ends in one smaller module: a linear layer, an attention module, an MLP, a position table. It has one part or more,
each with sizes: the rank of a layer, directions of heads' logits and of their values, hidden units. It says which
statistics it needs and decomposes its module; once ``decomposed`` it tells the loss and cost of every size of each part, and
can be cut at any sizes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from torch import Tensor, nn

from lowrank_vit.linalg.metric import output_metric
from lowrank_vit.linalg.mixtures import Mixture
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import LayerEntry
from lowrank_vit.records.sites import Site
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.compensate import Compensation

Ranks = Mapping[str, int | None]  # of parts; None: stays dense
Needs = dict[str, frozenset[str]]  # statistics, by the names of linear layers


class Asking(Protocol):
    """Define the interface of a decomposition, or of a choice."""

    @property
    def needs(self) -> frozenset[str] | tuple[frozenset[str], ...]:
        """Return the statistics that it reads; of several layers, in their order."""


Method = TypeVar("Method", bound=Asking)
Found = TypeVar("Found")  # what a method finds of a part, which can be stored
UNKNOWN: Any = None  # until a unit is decomposed


@dataclass(frozen=True)
class Settings:
    """Hold the settings of a recipe that all units share.

    ``partial``: modules that cannot be taken as a whole are left to single layers, instead of refused. ``pivoted``: pairs
    of factors will hold identities, which cost nothing.
    """

    bias_correction: bool = False
    rank_multiple: int = 1
    compensation: Compensation | None = None
    refit: bool = False
    partial: bool = False
    pivoted: bool = False


PLAIN = Settings()


class Named(Protocol):
    """Define the interface of what a unit is cut from."""

    @property
    def name(self) -> str:
        """Return the name of the module that is replaced."""


class Cut(Protocol):
    """Define the interface of a module at chosen sizes of its parts."""

    @property
    def residual(self) -> Tensor | None:
        """Return what the weight loses, (n, d), where a compensation Z can be fitted to it."""

    def fold(self) -> nn.Module:
        """Make the smaller module."""


@dataclass(frozen=True)
class Folded:
    """Hold the smaller module itself, where no Z can be fitted."""

    module: nn.Module

    residual: ClassVar[Tensor | None] = None

    def fold(self) -> nn.Module:
        return self.module


@dataclass(frozen=True)
class Unit(Generic[Method, Found]):
    """Describe a unit; once ``decomposed``, with what was found of each part, by the parts' names.

    ``tokens``: of an image, at the first linear layer, where costs count them. ``moments``, ``unseen``: by layer.
    ``ahead``: whether its module comes before the first block; such a kind may ``prepare`` a model.
    """

    site: Named
    method: Method
    settings: Settings = PLAIN
    tokens: int = 0
    model: nn.Module = field(default=UNKNOWN, compare=False, repr=False)
    parts: Mapping[str, Found] = field(default=UNKNOWN, compare=False, repr=False)
    moments: Mapping[str, Moments] = field(default=UNKNOWN, compare=False, repr=False)
    unseen: Mapping[str, Moments] | None = field(default=UNKNOWN, compare=False, repr=False)

    methods: ClassVar[Registry[Any]]  # decompositions of such a module
    ahead: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Return the name of the module that is replaced."""
        return self.site.name

    @property
    def linears(self) -> tuple[Site, ...]:
        """Return the linear layers where statistics are collected; the last one makes the output."""
        raise NotImplementedError

    @property
    def work(self) -> float:
        """Estimate the decomposition's work, up to a constant factor."""
        return cubic_work(self.linears[-1])

    @classmethod
    def prepare(cls, model: nn.Module) -> None:
        """Bring a model into the form that the unit is cut from, in place."""

    @classmethod
    def find(cls, model: nn.Module, method: Method, settings: Settings, sites: str) -> "Sequence[Unit[Method, Found]]":
        """Find the units of this kind in a model; ``sites``: a pattern of single layers' names.

        Raises ``InputError`` for a model that has none.
        """
        raise NotImplementedError

    def needs(self) -> Needs:
        """Return the statistics to collect at each linear layer."""
        raise NotImplementedError

    def report_needs(self) -> Needs:
        """Return the statistics to collect on unseen images, for the report."""
        return self.needs()

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, Found]:
        """Decompose each part. Raises ``ValueError`` or ``LinAlgError`` for statistics that cannot be used."""
        raise NotImplementedError

    def decomposed(
        self,
        model: nn.Module,
        parts: Mapping[str, Found],
        moments: Mapping[str, Moments],
        unseen: Mapping[str, Moments] | None,
    ) -> Self:
        """Return the unit with what ``decompose`` found."""
        seen = moments[self.linears[0].name]
        tokens = seen.tokens // max(seen.images, 1)
        return replace(self, tokens=tokens, model=model, parts=parts, moments=moments, unseen=unseen)

    def curves(self) -> list[ErrorCurve]:
        """Return the loss and cost of every size of each part; no losses before it is decomposed."""
        raise NotImplementedError

    @property
    def found(self) -> Found:
        """Return what was found of the only part."""
        (found,) = self.parts.values()
        return found

    @property
    def cap(self) -> int | None:
        """Return the rank above which no direction helps, where the statistics cap it."""
        return None

    def probe_rank(self, part: str) -> int:
        """Return the size at which a part that stays dense is measured: by default half of the largest."""
        (errors,) = (curve.errors for curve in self.curves() if curve.name == part)
        return max(1, (len(errors) - 1) // 2)

    def mixture(self, part: str, sizes: Sequence[int | None]) -> Mixture:
        """Return the dense model's parameters, given the shares of several sizes of a part, by which a search learns sizes.

        Raises ``InputError`` where there are none, which is the default.
        """
        raise InputError(f"the sizes of {self.name!r} cannot be searched by gates: choose a recipe without a search")

    def cut(self, ranks: Ranks) -> Cut:
        """Cut at the sizes of all parts."""
        raise NotImplementedError

    def entry(self, cut: Any, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        """Make the module's entry of the report; ``cut`` is None where it stays dense."""
        raise NotImplementedError

    def statistics(self, layer: str) -> list[Moments]:
        """Return those of a layer on the calibration images, and on unseen ones where there are any."""
        return [self.moments[layer], *([] if self.unseen is None else [self.unseen[layer]])]

    def output_errors(self, layer: str, weight: Tensor, approximation: Tensor, shift: Tensor) -> list[float]:
        """Return the relative errors of a layer's outputs by ``statistics``, the bias being shifted by ``shift``, (d,).

        ``weight``, ``approximation``: (n, d); the inputs are those of the dense model.
        """
        metrics = [output_metric(weight, moments, centred=False) for moments in self.statistics(layer)]
        return [metric.relative_error(approximation, shift) for metric in metrics]


UNITS: Registry[type[Unit[Any, Any]]] = Registry("kind of unit", "lowrank_vit.units")


def united(needs: Iterable[Needs]) -> Needs:
    """Join the statistics that several units need of the same layers."""
    joined: Needs = {}
    for each in needs:
        joined |= {name: joined.get(name, frozenset()) | names for name, names in each.items()}
    return joined


def layer_entry(
    name: str,
    shape: tuple[int, int],
    rank: int | None,
    params: int,
    errors: Sequence[float],
    details: Mapping[str, Any],
    z: Any = None,
) -> LayerEntry:
    """Make an entry of the report; ``errors``: on the calibration images and, where there are any, on unseen ones."""
    return {
        "name": name,
        "in_features": shape[0],
        "out_features": shape[1],
        "rank": rank,
        "z": z,
        "params": params,
        "relative_error": errors[0],
        "relative_error_held_out": errors[1] if len(errors) > 1 else None,
        "details": dict(details),
    }


def cubic_work(site: Site) -> float:
    """Estimate the work of a layer's decomposition or closed form, up to a constant factor: eigenvectors and products."""
    n, d = site.in_features, site.out_features
    return float(n**3 + n * d * min(n, d))
