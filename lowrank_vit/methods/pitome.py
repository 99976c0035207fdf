"""PiToMe: tokens of large clusters merged first (Tran et al., NeurIPS 2024)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

from torch import nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.modules.token_block import MERGE, TokenBlock
from lowrank_vit.records.looks import look
from lowrank_vit.stages.tokens import TOKENS, check_shares

MARGIN = 0.9  # of the cosine in the first block; it falls to 0 along the depth, as in the paper


@TOKENS.register("pitome")
@dataclass(frozen=True)
class EnergyMerging:
    """Keep the share ``keep`` of the patches in every block, merging those that most others resemble (PiToMe).

    Energies and pairs are those of ``merged_by_energy``; the margin falls from 0.9 to 0 along the blocks. Keys of all heads
    are compared side by side, where the paper takes their mean. ``keep`` 1 is the model as it was.
    """

    keep: float = 0.925

    def __post_init__(self) -> None:
        check_shares(self.keep)

    def __call__(self, model: nn.Module) -> nn.Module:
        """Return a copy whose blocks merge tokens."""
        small = copy.deepcopy(model)
        names = family_of(small).token_blocks(small)
        prefix = getattr(small, "num_prefix_tokens", 1)
        patches = given = int(getattr(small.patch_embed, "num_patches", 0))
        for place, name in enumerate(names):
            kept = max(math.ceil(given * self.keep ** (place + 1)), patches - patches // 2)
            ends = {"first": place == 0, "last": place == len(names) - 1}
            margin = MARGIN * (1 - place / len(names))
            block = TokenBlock(small.get_submodule(name), MERGE, patches - kept, prefix, **ends, margin=margin)
            replace_module(small, name, block)
            patches = kept
        return small

    def strengths(self, tokens: int) -> list[EnergyMerging]:
        """List the rule from all tokens kept to half of them in every block."""
        return [replace(self, keep=1 - step / (2 * tokens)) for step in range(tokens + 1)]


look("pitome", "X", (1, 3), "olive", "PiToMe", "saves no parameters")
