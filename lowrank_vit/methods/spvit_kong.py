"""SPViT of Kong et al. 2022: tokens that a learnt selector drops, packed into one."""

import copy
import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.modules.token_block import SelectingBlock
from lowrank_vit.records.looks import look
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import reseed
from lowrank_vit.stages.tokens import TOKENS, check_shares


@TOKENS.register("spvit-kong-gates")
@dataclass(frozen=True)
class SelectorsAlone:
    """Keep shares of the patches by selectors before some blocks, trained alone on calibration images (Kong et al. 2022).

    ``keep``, its square and its third power are the shares before the blocks at ``at``, shares of the depth: by default
    blocks 3, 6 and 9 of 12 (counted from 0). Each leaves a package of those it drops, which then stays. The weights of the
    model do not change. ``keep`` 1 is the model as it was.
    Raises ``InputError`` for shares out of range.
    """

    keep: float = 0.7
    at: tuple[float, ...] = (0.25, 0.5, 0.75)

    labelled: ClassVar[bool] = False  # whether labelled images, and the weights, are needed

    def __post_init__(self) -> None:
        check_shares(self.keep, self.at)

    def __call__(self, model: nn.Module) -> nn.Module:
        """Return a copy with selectors that have learnt nothing yet. Raises ``InputError`` for another kind of model."""
        from lightning.pytorch.utilities.seed import isolate_rng

        small = copy.deepcopy(model)
        names = family_of(small).token_blocks(small)
        pooled = getattr(small, "num_prefix_tokens", 1) == 1 and getattr(small, "global_pool", "token") == "token"
        if not pooled:
            raise InputError(f"{type(small).__name__} does not read its result from a class token alone")
        attention = small.get_submodule(f"{names[0]}.attn")
        width, patches = int(small.embed_dim), int(small.patch_embed.num_patches)  # type: ignore[arg-type, union-attr]
        heads = getattr(attention, "num_heads", None) or len(attention.query_key.widths)  # type: ignore[union-attr, arg-type]
        places = sorted({math.ceil(share * len(names)) for share in self.at} - {len(names)}) if self.keep < 1 else []
        with isolate_rng():
            reseed(len(places))  # the same selectors in every process
            for turn, place in enumerate(places):
                count = math.ceil(self.keep ** (turn + 1) * patches - 1e-9)
                block = SelectingBlock(small.get_submodule(names[place]), width, heads, count, turn)
                weight = next(small.get_submodule(names[place]).parameters())
                block.selector.to(weight)
                replace_module(small, names[place], block)
        return small.train(model.training)

    def strengths(self, tokens: int) -> "list[SelectorsAlone]":
        """List the rule from all patches but one kept, one less at a time, to a single one."""
        return [replace(self, keep=kept / tokens) for kept in range(tokens - 1, 0, -1)]


@TOKENS.register("spvit-kong")
@dataclass(frozen=True)
class SelectorsAndWeights(SelectorsAlone):
    """Train selectors and, a hundred times slower, the weights on labelled images; otherwise as ``spvit-kong-gates``."""

    labelled: ClassVar[bool] = True


look(
    "spvit-kong-gates", ">", (4, 2), "red", "Kong's SPViT, selectors alone",
    "on calibration images, towards the dense model; adds the selectors' parameters",
)  # fmt: skip


look("spvit-kong", ">", (), "pink", "Kong's SPViT", "the weights at a hundredth of the rate")
