"""ToMe: token merging (Bolya et al., ICLR 2023)."""

from dataclasses import dataclass, replace

from torch import nn

from lowrank_vit.records.looks import look
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.tokens import TOKENS
from lowrank_vit.stages.tokens.merging import merge_in_blocks


@TOKENS.register("tome")
@dataclass(frozen=True)
class TokenMerging:
    """Merge ``r`` pairs of tokens in every block (ToMe, Bolya et al., ICLR 2023), with proportional attention.

    Keys of all heads are compared side by side; the official code compares their mean over the heads, which smaller heads
    of unequal widths do not have. ``r`` 0 is the model as it was.
    """

    r: int = 8

    def __post_init__(self) -> None:
        if self.r < 0:
            raise InputError(f"r={self.r}: the number of pairs merged in a block is not negative")

    def __call__(self, model: nn.Module) -> nn.Module:
        return merge_in_blocks(model, lambda depth: [{"count": self.r}] * depth)

    def strengths(self, tokens: int) -> "list[TokenMerging]":
        return [replace(self, r=pairs) for pairs in range(tokens // 2 + 1)]


look("tome", "o", (1, 3), "blue", "ToMe", "saves no parameters")
