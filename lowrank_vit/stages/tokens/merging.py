"""Ours: pairs of similar tokens merged by a plan, block by block, and a last block for the tokens that the head reads."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.modules.token_block import MERGE, READ, TokenBlock
from lowrank_vit.runtime.errors import InputError


@dataclass(frozen=True)
class PlannedMerging:
    """Merge ``pairs`` of tokens, one number for each block, or one for all, as ToMe does; none by default.

    Tokens that the class token attends to merge later: ``salience`` is taken off a pair's similarity for each time that
    its attention exceeds the mean. Where the head reads the class token alone, the last block computes that one alone,
    from all others, which changes nothing.
    """

    pairs: tuple[int, ...] = (0,)
    salience: float = 0.1

    def __post_init__(self) -> None:
        if any(count < 0 for count in self.pairs) or not self.pairs:
            raise InputError(f"pairs={self.pairs}: need one number for each block, or one for all, none negative")

    def __call__(self, model: nn.Module) -> nn.Module:
        small = copy.deepcopy(model)
        for name, block in self.blocks(small):
            replace_module(small, name, block)
        return small

    def blocks(self, model: nn.Module) -> Iterator[tuple[str, TokenBlock]]:
        """Yield the blocks that take the place of the model's, by name; they share its weights.

        Raises ``InputError`` for a model whose tokens must stay, and for numbers of another depth.
        """
        family = family_of(model)
        names, read = family.token_blocks(model), family.read_tokens(model)
        pairs = self.pairs * len(names) if len(self.pairs) == 1 else self.pairs
        if len(pairs) != len(names):
            raise InputError(
                f"{len(pairs)} numbers of pairs for {len(names)} blocks: give one for each, or one for all"
            )
        prefix = getattr(model, "num_prefix_tokens", 1)
        salience = self.salience if prefix and read is not None else 0.0
        merging = [place for place, count in enumerate(pairs) if count and (read is None or place < len(names) - 1)]
        begin, end = merging[0] if merging else len(names), len(names) - 1
        for place in range(begin, len(names)):
            ends = {"first": place == begin, "last": place == end}
            if place < end or read is None:
                block = TokenBlock(
                    model.get_submodule(names[place]), MERGE, pairs[place], prefix, **ends, salience=salience
                )
                yield names[place], block
        if read is not None:
            ends = {"first": begin >= end, "last": True}
            yield names[end], TokenBlock(model.get_submodule(names[end]), READ, read, prefix, **ends)

    def strengths(self, tokens: int) -> "list[PlannedMerging]":
        """List the rule from no pair in a block to half of the tokens, the same number in every block."""
        return [replace(self, pairs=(pairs,)) for pairs in range(tokens // 2 + 1)]


def merge_in_blocks(model: nn.Module, options: Callable[[int], Iterable[Mapping[str, Any]]]) -> nn.Module:
    """Return a copy whose blocks all merge tokens; ``options`` lists those of each ``TokenBlock`` for a number of blocks."""
    small = copy.deepcopy(model)
    names, prefix = family_of(small).token_blocks(small), getattr(small, "num_prefix_tokens", 1)
    for place, (name, fields) in enumerate(zip(names, options(len(names)), strict=True)):
        ends = {"first": place == 0, "last": place == len(names) - 1}
        replace_module(small, name, TokenBlock(small.get_submodule(name), MERGE, prefix=prefix, **ends, **fields))
    return small
