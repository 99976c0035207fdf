"""How many blocks stay."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from posixpath import commonpath
from typing import ClassVar

from torch import nn

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
from lowrank_vit.stages.decompose import DEPTHS, BlockChoice
from lowrank_vit.stages.gates.expected import dense_cost
from lowrank_vit.units.base import UNITS, Folded, Needs, Ranks, Settings, Unit, layer_entry

DEPTH = "depth"


@dataclass(frozen=True)
class DepthSite:
    """Describe all blocks of a model, and the module that has them."""

    name: str
    blocks: tuple[str, ...]
    costs: tuple[Cost, ...]  # of each block
    output: Site  # the last output layer in the blocks, where statistics for the report are collected


@UNITS.register("depth")
@dataclass(frozen=True)
class DepthUnit(Unit[BlockChoice, Directions]):
    """Describe all blocks of a model, with the part ``depth``: how many stay, at least one.

    Steps between stages stay, too.
    """

    site: DepthSite

    methods: ClassVar[Registry[type[BlockChoice]]] = DEPTHS
    work: ClassVar[float] = 0.0

    @property
    def part(self) -> str:
        return f"{self.name}.{DEPTH}"

    @property
    def linears(self) -> tuple[Site, ...]:
        return (self.site.output,)

    @classmethod
    def find(cls, model: nn.Module, method: BlockChoice, settings: Settings, sites: str) -> "list[DepthUnit]":
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
        name = commonpath([block.replace(".", "/") for block in blocks]).replace("/", ".")
        if not name:
            raise InputError(f"the blocks of {type(model).__name__} are not in one module: choose another recipe")
        return [cls(DepthSite(name, blocks, tuple(costs), last), method, settings)]

    def needs(self) -> Needs:
        return {self.site.output.name: frozenset({"second"})}

    def curves(self) -> list[ErrorCurve]:
        """Return the curve with exact parameters; multiply-accumulates are those of blocks on average."""
        units, costs = self.method(len(self.site.blocks)) if self.parts is None else self.found, self.site.costs
        count, dense = len(costs), sum(costs, NOTHING)
        unit = Cost(dense.parameters // count + 1, dense.macs // count + 1)
        order = units.order.tolist()
        kept = [sum(costs[index].parameters for index in order[:rank]) for rank in range(count + 1)]
        saved = tuple(rank * unit.parameters - exact for rank, exact in enumerate(kept))
        return [ErrorCurve(self.part, units.loss, unit, dense, multiple=self.settings.rank_multiple, saved=saved)]

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, Directions]:
        return {self.part: self.method(len(self.site.blocks))}

    def kept(self, ranks: Ranks) -> list[int]:
        """Return the places of the blocks that stay: the first in the order."""
        return self.found.kept(ranks[self.part]).tolist()

    def cut(self, ranks: Ranks) -> Folded:
        site, kept = self.site, self.kept(ranks)
        small = copy.deepcopy(self.model.get_submodule(site.name))
        for place, block in enumerate(site.blocks):
            if place not in kept:
                replace_module(small, block.removeprefix(f"{site.name}."), Skipped())
        return Folded(small)

    def entry(self, cut: Folded | None, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        """Make the entry of the report; where the last output layer is no longer computed, all of its output is lost."""
        site, kept = self.site, self.kept(ranks)
        errors = [float(len(site.blocks) - 1 not in kept)] * (1 if self.unseen is None else 2)
        details = {DEPTH: len(kept), f"{DEPTH}_of": len(site.blocks)}
        parameters = sum(site.costs[index].parameters for index in kept)
        shape = site.output.in_features, site.output.out_features
        return layer_entry(site.name, shape, None, parameters, errors, details)
