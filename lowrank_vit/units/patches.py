"""The rank of the patch embedding, as a linear layer over patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from lowrank_vit.architectures.linears import find_sites
from lowrank_vit.modules.embeddings import Patches, is_plain
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.stages.decompose import Decomposition
from lowrank_vit.units.base import UNITS, Needs, Settings
from lowrank_vit.units.linear import LinearUnit

EMBEDDING = "patch_embed.proj"  # in all of timm's families that have one convolution for it


@UNITS.register("patches")
@dataclass(frozen=True)
class PatchUnit(LinearUnit):
    """Describe the patch embedding, whose only part is its rank; ``prepare`` makes a linear layer of the convolution."""

    revision: ClassVar[int] = 1
    ahead: ClassVar[bool] = True

    @classmethod
    def prepare(cls, model: nn.Module) -> None:
        """Exchange the convolution of patches that do not overlap for a linear layer, in place."""
        convolution = dict(model.named_modules()).get(EMBEDDING)
        if is_plain(convolution):
            assert isinstance(convolution, nn.Conv2d)
            replace_module(model, EMBEDDING, Patches.of(convolution))

    @classmethod
    def find(cls, model: nn.Module, method: Decomposition, settings: Settings, sites: str) -> list[LinearUnit]:
        """Find the patch embedding, where it is one that ``prepare`` knows."""
        if not isinstance(dict(model.named_modules()).get(EMBEDDING), Patches):
            return []
        return [cls(site, method, settings) for site in find_sites(model, rf"^{EMBEDDING}\.linear$")]

    def needs(self) -> Needs:
        """Return the statistics that the method, the report and Z read; the patch embedding is not refitted."""
        return {name: needs - {"sensitive_second"} for name, needs in super().needs().items()}
