"""EViT: tokens that the class token does not attend to, fused into one (Liang et al. 2022)."""

import copy
import math
from dataclasses import dataclass, replace

from torch import nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.modules.token_block import FUSE, TokenBlock
from lowrank_vit.records.looks import look
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.tokens import TOKENS, check_shares


@TOKENS.register("evit")
@dataclass(frozen=True)
class AttentiveTokens:
    """Keep the share ``keep`` of the tokens after some blocks, by the class token's attention (EViT, Liang et al. 2022).

    Its mean over the heads decides, and weights the tokens that are fused into one. ``at``: after which shares of the depth,
    by default blocks 3, 6 and 9 of 12 (counted from 0). ``keep`` 1 is the model as it was.
    """

    keep: float = 0.7
    at: tuple[float, ...] = (0.25, 0.5, 0.75)

    def __post_init__(self) -> None:
        check_shares(self.keep, self.at)

    def __call__(self, model: nn.Module) -> nn.Module:
        """Return a copy whose blocks at ``at`` keep fewer tokens."""
        small = copy.deepcopy(model)
        names = family_of(small).token_blocks(small)
        if getattr(small, "num_prefix_tokens", 1) != 1:
            raise InputError(
                f"{type(small).__name__} has no class token alone before its patches, by which tokens are chosen"
            )
        tokens = int(getattr(small.patch_embed, "num_patches", 0))
        for place in sorted({int(share * len(names)) for share in self.at}):
            count = math.ceil(self.keep * tokens)
            if count < tokens - 1:
                replace_module(small, names[place], TokenBlock(small.get_submodule(names[place]), FUSE, count))
                tokens = count + 1  # with the fused one
        return small

    def strengths(self, tokens: int) -> "list[AttentiveTokens]":
        """List the rule from all tokens kept, one less at a time, to a single one."""
        return [replace(self, keep=kept / tokens) for kept in range(tokens, 0, -1)]


look("evit", "s", (5, 3), "violet", "EViT's rule, untrained", "saves no parameters; without its training")
