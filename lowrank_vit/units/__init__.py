"""Compressible units, one file for each kind: what can be made smaller in a module.

Units that are folded into one smaller module form a group: a linear layer (its rank), an attention module (its heads'
logits, and their values), an MLP (its hidden units). A group says which statistics it needs and decomposes its module;
``known`` then returns the sizes of each unit, with the loss and cost of each, ready to be cut at chosen sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import LayerEntry
from lowrank_vit.records.sites import Site
from lowrank_vit.runtime.registry import Registry

Ranks = Mapping[str, int | None]  # of units; None: stays dense


@dataclass(frozen=True)
class Settings:
    """Hold the settings of a recipe that all groups share.

    ``partial``: modules that cannot be taken as a whole are left to single layers, instead of refused. ``pivoted``: pairs
    of factors will hold identities, which cost nothing.
    """

    bias_correction: bool = False
    rank_multiple: int = 1
    compensation: Any = None
    refit: bool = False
    partial: bool = False
    pivoted: bool = False


PLAIN = Settings()


class Cut(Protocol):
    """Define the interface of a module at chosen sizes of its units."""

    @property
    def residual(self) -> Tensor | None:
        """Return what the weight loses, (n, d), where a compensation Z can be fitted to it."""
        ...

    def fold(self) -> nn.Module:
        """Make the smaller module."""
        ...


class Known(Protocol):
    """Define the interface of a group whose module has been decomposed.

    It may have ``mixture(unit, sizes)``, a ``Mixture`` of the dense model's parameters, by which a search learns sizes.
    """

    group: Group

    @property
    def cap(self) -> int | None:
        """Return the rank above which no direction helps, where the statistics cap it."""
        ...

    def curves(self) -> list[ErrorCurve]:
        """Return the loss and cost of every size of each unit."""
        ...

    def probe_rank(self, unit: str) -> int:
        """Return the size at which a unit that stays dense is measured."""
        ...

    def cut(self, ranks: Ranks) -> Any:
        """Return the ``Cut`` at the sizes of all units."""
        ...

    def entry(self, cut: Any, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        """Make the module's entry of the report; ``cut`` is None where it stays dense."""
        ...


class Group(Protocol):
    """Define the interface of a group: the units of one module, before any image is seen.

    A kind of group may have two more things: ``ahead``, true where its modules come before the first block, and
    ``prepare(model)``, which brings a model into the form that it is cut from, in place.
    """

    methods: ClassVar[Registry[Any]]  # decompositions of such a module

    @property
    def name(self) -> str:
        """Return the name of the module that is replaced."""
        ...

    @property
    def linears(self) -> Sequence[Site]:
        """Return the linear layers where statistics are collected; the last one makes the output."""
        ...

    @property
    def work(self) -> float:
        """Estimate the decomposition's work, up to a constant factor."""
        ...

    @classmethod
    def find(cls, model: nn.Module, method: Any, settings: Settings, sites: str) -> list[Any]:
        """Find the groups of this kind in a model. Raises ``InputError`` where there are none."""
        ...

    def needs(self) -> dict[str, frozenset[str]]:
        """Return the statistics to collect at each linear layer."""
        ...

    def report_needs(self) -> dict[str, frozenset[str]]:
        """Return the statistics to collect on unseen images, for the report."""
        ...

    def blank_curves(self, tokens: Mapping[str, int]) -> list[ErrorCurve]:
        """Return the curves with costs and without losses; ``tokens``: of an image, by linear layer, where they count."""
        ...

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, Any]:
        """Decompose each unit. Raises ``ValueError`` or ``LinAlgError`` for statistics that cannot be used."""
        ...

    def known(
        self,
        model: nn.Module,
        parts: Mapping[str, Any],
        moments: Mapping[str, Moments],
        unseen: Mapping[str, Moments] | None,
    ) -> Any:
        """Return the ``Known`` of what ``decompose`` found."""
        ...


GROUPS: Registry[Any] = Registry("kind of unit", __name__)


def united(needs: Iterable[Mapping[str, frozenset[str]]]) -> dict[str, frozenset[str]]:
    """Join the statistics that several groups need of the same layers."""
    joined: dict[str, frozenset[str]] = {}
    for each in needs:
        joined |= {name: joined.get(name, frozenset()) | names for name, names in each.items()}
    return joined


def tokens_of_an_image(moments: Moments) -> int:
    """Return how many tokens of an image a layer saw while statistics were collected."""
    return moments.tokens // max(moments.images, 1)


def cubic_work(site: Site) -> float:
    """Estimate the work of a layer's decomposition or closed form, up to a constant factor: eigenvectors and products."""
    n, d = site.in_features, site.out_features
    return float(n**3 + n * d * min(n, d))
