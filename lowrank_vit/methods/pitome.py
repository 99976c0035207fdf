"""PiToMe: tokens of large clusters merged first (Tran et al., NeurIPS 2024)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from lowrank_vit.records.looks import look
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.tokens import TOKENS, check_shares
from lowrank_vit.stages.tokens.merging import merge_in_blocks

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
        return merge_in_blocks(model, partial(self._blocks, model))

    def _blocks(self, model: nn.Module, depth: int) -> Iterator[dict[str, Any]]:
        """Yield the pairs and the margin of each block. Raises ``InputError`` for a model that does not say its patches."""
        patches: int | None = getattr(getattr(model, "patch_embed", None), "num_patches", None)
        if patches is None:
            raise InputError(f"{type(model).__name__} does not say how many patches it has, of which a share is kept")
        left = patches
        for place in range(depth):
            kept = max(math.ceil(patches * self.keep ** (place + 1)), left - left // 2)
            yield {"count": left - kept, "margin": MARGIN * (1 - place / depth)}
            left = kept

    def strengths(self, tokens: int) -> "list[EnergyMerging]":
        return [replace(self, keep=1 - step / (2 * tokens)) for step in range(tokens + 1)]


look("pitome", "v", (1, 3), "olive", "PiToMe", "saves no parameters")
