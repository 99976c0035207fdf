"""How many blocks stay."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from posixpath import commonpath
from typing import ClassVar

from torch import Tensor, nn

from lowrank_vit.architectures.base import family_of, survey
from lowrank_vit.architectures.linears import find_sites
from lowrank_vit.modules.counting import input_size, parameter_count, tokens_per_image
from lowrank_vit.modules.skipped import Skipped
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.costs import NOTHING, Cost
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.factors import Directions
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import LayerEntry
from lowrank_vit.records.sites import Site
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.decompose.depth import DEPTHS, BlockChoice
from lowrank_vit.stages.gates.expected import dense_cost
from lowrank_vit.units import GROUPS, PLAIN, Ranks, Settings

DEPTH = "depth"


@GROUPS.register("depth")
@dataclass(frozen=True)
class DepthGroup:
    """Describe all blocks of a model, with the unit ``depth``: how many stay, at least one.

    Steps between stages stay, too.
    """

    revision: ClassVar[int] = 1

    site: Site  # the last output layer in the blocks, where statistics for the report are collected
    blocks: tuple[str, ...]
    costs: tuple[Cost, ...]  # of each block
    method: BlockChoice
    settings: Settings = PLAIN

    methods: ClassVar[Registry[type[BlockChoice]]] = DEPTHS

    @property
    def name(self) -> str:
        """Return the name of the module that has all blocks."""
        return commonpath([block.replace(".", "/") for block in self.blocks]).replace("/", ".")

    @property
    def unit(self) -> str:
        """Return the name of the unit."""
        return f"{self.name}.{DEPTH}"

    @property
    def linears(self) -> tuple[Site, ...]:
        """Return the last output layer."""
        return (self.site,)

    @property
    def work(self) -> float:
        """Return nothing: there is nothing to decompose."""
        return 0.0

    @classmethod
    def find(cls, model: nn.Module, method: BlockChoice, settings: Settings, sites: str) -> list[DepthGroup]:
        """Find the blocks. Raises ``InputError`` for a model whose blocks are not known, or of which there is one."""
        family = family_of(model)
        blocks = tuple(name for name, step in family.steps(model).items() if family.branches(step))
        if len(blocks) < 2:
            raise InputError(f"{type(model).__name__} has {len(blocks)} blocks: none of them can go")
        whole, size = survey(model)[0], input_size(model)
        outputs = [site.linears[-1].name for site in whole]
        tokens = {} if size is None else tokens_per_image(model, outputs, size)
        costs = []
        for block in blocks:
            own = [site for site in whole if site.name.startswith(f"{block}.")]
            parts = [dense_cost(site, tokens.get(site.linears[-1].name, 0)) for site in own]
            costs.append(Cost(parameter_count(model.get_submodule(block)), sum(parts, NOTHING).macs))
        last = [site for site in find_sites(model) if site.name.startswith(f"{blocks[-1]}.")][-1]
        group = cls(last, blocks, tuple(costs), method, settings)
        if not group.name:
            raise InputError(f"the blocks of {type(model).__name__} are not in one module: choose another recipe")
        return [group]

    def needs(self) -> dict[str, frozenset[str]]:
        """Return the statistics that the report reads."""
        return {self.site.name: frozenset({"second"})}

    report_needs = needs

    def curve(self, units: Directions) -> ErrorCurve:
        """Return the curve, with exact parameters; multiply-accumulates are those of blocks on average."""
        count, dense = len(self.costs), sum(self.costs, NOTHING)
        unit = Cost(dense.parameters // count + 1, dense.macs // count + 1)
        order = units.order.tolist()
        kept = [sum(self.costs[index].parameters for index in order[:rank]) for rank in range(count + 1)]
        saved = tuple(rank * unit.parameters - exact for rank, exact in enumerate(kept))
        return ErrorCurve(self.unit, units.loss, unit, dense, multiple=self.settings.rank_multiple, saved=saved)

    def blank_curves(self, tokens: Mapping[str, int]) -> list[ErrorCurve]:
        """Return the curve."""
        return [self.curve(self.method(len(self.blocks)))]

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, Directions]:
        """Order the blocks."""
        return {self.unit: self.method(len(self.blocks))}

    def known(
        self,
        model: nn.Module,
        parts: Mapping[str, Directions],
        moments: Mapping[str, Moments],
        unseen: Mapping[str, Moments] | None,
    ) -> KnownDepth:
        """Return the blocks in order."""
        return KnownDepth(self, model, parts[self.unit], unseen is not None)


@dataclass(frozen=True)
class KnownDepth:
    """Hold the blocks of a model in order."""

    group: DepthGroup
    model: nn.Module
    units: Directions
    held_out: bool  # whether errors on unseen images are reported

    cap: ClassVar[int | None] = None

    def curves(self) -> list[ErrorCurve]:
        """Return the only curve."""
        return [self.group.curve(self.units)]

    def probe_rank(self, unit: str) -> int:
        """Return half of the blocks."""
        return max(1, len(self.group.blocks) // 2)

    def cut(self, ranks: Ranks) -> DepthCut:
        """Keep the first blocks in the order."""
        return DepthCut(self, tuple(self.units.kept(ranks[self.group.unit]).tolist()))

    def entry(self, cut: DepthCut | None, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        """Make the entry of the report; where the last output layer is no longer computed, all of its output is lost."""
        site, group = self.group.site, self.group
        kept = range(len(group.blocks)) if cut is None else cut.kept
        error = float(len(group.blocks) - 1 not in kept)
        return {
            "name": group.name,
            "in_features": site.in_features,
            "out_features": site.out_features,
            "rank": None,
            "z": None,
            "params": sum(group.costs[index].parameters for index in kept),
            "relative_error": error,
            "relative_error_held_out": error if self.held_out else None,
            "details": {DEPTH: len(kept), f"{DEPTH}_of": len(group.blocks)},
        }


@dataclass(frozen=True)
class DepthCut:
    """Hold the blocks that stay, by their places."""

    known: KnownDepth
    kept: tuple[int, ...]

    residual: ClassVar[Tensor | None] = None

    def fold(self) -> nn.Module:
        """Make the module of all blocks, in which the removed ones return their input."""
        group = self.known.group
        small = copy.deepcopy(self.known.model.get_submodule(group.name))
        for place, block in enumerate(group.blocks):
            if place not in self.kept:
                replace_module(small, block.removeprefix(f"{group.name}."), Skipped())
        return small
