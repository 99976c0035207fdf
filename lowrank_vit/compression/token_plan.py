"""Tokens as sizes: how many pairs each block merges, by measured divergences, under a share of the multiply-accumulates.

A curve for each block tells what the divergence from the dense model is when the block alone merges pairs until a number
of tokens is gone. To merge from g to g' tokens in a block is taken to lose the difference of its curve between the two:
what earlier blocks merged was the most redundant. All blocks after a merge cost less, so the plan is a path of the tokens
that are left, the cheapest of which is found exactly by dynamic programming over blocks and tokens. Losses do not really
add up, so several paths are measured whole, and the best is refined by measured exchanges between blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.compression.case import Case
from lowrank_vit.compression.recipe import MERGED, Recipe
from lowrank_vit.modules.counting import input_size, model_size, multiply_accumulates
from lowrank_vit.records.budgets import Size, budgets_of
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.progress import track
from lowrank_vit.runtime.tensors import Spill
from lowrank_vit.stages.correct.measured_losses import LEAST, MeasuredLosses, Replay
from lowrank_vit.stages.tokens.merging import PlannedMerging

GRID = (0.04, 0.08, 0.16, 0.25, 0.33, 0.41, 0.49)  # of the tokens, merged in one block
STEPS = 48  # in which all tokens are planned
POWERS = (1.0, 0.75, 0.5)  # of the curves: losses that add up to less than their sum favour fewer, larger merges
ROUNDS = (4, 2, 1, 1)  # steps that are exchanged between blocks, in turn
TRIES = 3  # exchanges that are measured in a round

Pairs = tuple[int, ...]  # merged in each block


@dataclass(frozen=True)
class BlockCosts:
    """Count multiply-accumulates of a model's blocks by their tokens; those of the last are few, as it has one query."""

    attention: Sequence[int]  # of each block, for a token
    products: Sequence[int]  # of each block, for a pair of tokens
    mlp: Sequence[int]  # of each block, for a token
    read: int | None  # how many tokens the last block computes; None: all
    tokens: int
    prefix: int

    @classmethod
    def of(cls, model: nn.Module) -> "BlockCosts":
        """Read them off the blocks' weights."""
        family = family_of(model)
        blocks = [model.get_submodule(name) for name in family.token_blocks(model)]
        attentions, mlps = ([block.get_submodule(name) for block in blocks] for name in ("attn", "mlp"))
        prefix = int(getattr(model, "num_prefix_tokens", 1))
        patches = int(model.patch_embed.num_patches)  # type: ignore[union-attr, arg-type]
        inner = [2 * int(attention.get_submodule("proj").in_features) for attention in attentions]  # type: ignore[arg-type]
        read = family.read_tokens(model)
        return cls([*map(_weights, attentions)], inner, [*map(_weights, mlps)], read, patches + prefix, prefix)

    def before(self, block: int, tokens: int, pairs: int) -> int:
        """Count what a block costs up to its merging, with ``pairs`` merged."""
        compared = self.products[block] * tokens * tokens // 8 if pairs else 0
        return self.attention[block] * tokens + self.products[block] * tokens * tokens + compared

    def last(self, tokens: int) -> int:
        if self.read is None:
            return self.before(-1, tokens, 0) + self.mlp[-1] * tokens
        attention = self.attention[-1] * (tokens + self.read) // 2 + self.products[-1] * tokens * self.read
        return attention + self.mlp[-1] * self.read

    def __call__(self, pairs: Pairs) -> int:
        tokens, total = self.tokens, 0
        for block, count in enumerate(pairs[:-1]):
            total += self.before(block, tokens, count)
            tokens -= count
            total += self.mlp[block] * tokens
        return total + self.last(tokens)


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1)


def filled(points: Sequence[tuple[int, float]], tokens: int) -> NDArray[np.float64]:
    """Return a loss for 0, 1, ... tokens that are gone: its logarithm is linear between (and beyond) measured points.

    It never falls. Below the first point it is linear, from zero.

    >>> filled([(2, 1.0), (4, 4.0)], 6).round(2).tolist()
    [0.0, 0.5, 1.0, 2.0, 4.0, 8.0]
    """
    places = np.array([place for place, _ in points])
    logarithms = np.maximum.accumulate(np.log([max(loss, LEAST) for _, loss in points]))
    gone = np.arange(tokens, dtype=float)
    values = np.interp(gone, places, logarithms)
    back = min(len(places), 4)
    slope = (logarithms[-1] - logarithms[-back]) / max(places[-1] - places[-back], 1)
    beyond = gone > places[-1]
    values[beyond] = logarithms[-1] + slope * (gone[beyond] - places[-1])
    losses = np.exp(values)
    first = gone < places[0]
    losses[first] = losses[places[0]] * gone[first] / places[0]
    return losses


def cheapest_path(curves: Sequence[NDArray[np.float64]], costs: BlockCosts, rate: float, step: int) -> Pairs:
    """Return the pairs of each block that minimise the losses of all plus ``rate`` times the cost, in steps of ``step``."""
    best: dict[int, tuple[float, Pairs]] = {0: (0.0, ())}  # by the tokens that are gone
    for block, curve in enumerate(curves):
        reached: dict[int, tuple[float, Pairs]] = {}
        for gone, (value, pairs) in best.items():
            tokens = costs.tokens - gone
            for count in range(0, (tokens - costs.prefix) // 2 + 1, step):
                after = gone + count
                spent = costs.before(block, tokens, count) + costs.mlp[block] * (tokens - count)
                total = value + rate * spent + max(float(curve[after] - curve[gone]), 0.0)
                if after not in reached or total < reached[after][0]:
                    reached[after] = total, (*pairs, count)
        best = reached
    _, pairs = min((value + rate * costs.last(costs.tokens - gone), pairs) for gone, (value, pairs) in best.items())
    return (*pairs, 0)


@dataclass(frozen=True)
class TokenPlanner:
    """Plan how many pairs each block merges, for a case whose model is a plain ViT; rules are measured on its images."""

    case: Case

    @cached_property
    def costs(self) -> BlockCosts:
        return BlockCosts.of(self.case.model)

    @property
    def images(self) -> int:
        return (self.case.recipe.measured or MeasuredLosses()).images

    @cached_property
    def step(self) -> int:
        return max(1, self.costs.tokens // STEPS)

    @cached_property
    def curves(self) -> list[NDArray[np.float64]]:
        """Return the loss of each block but the last, by the tokens that are gone, measured with that block alone."""
        tokens, blocks = self.costs.tokens, len(self.costs.mlp) - 1
        sizes = sorted({max(1, round(share * tokens)) for share in GRID})
        sizes = [size for size in sizes if size <= (tokens - self.costs.prefix) // 2]

        def measure() -> list[list[tuple[int, float]]]:
            points: list[list[tuple[int, float]]] = [[] for _ in range(blocks)]
            with Spill() as kept:
                replay = self._replay(kept)
                shown = self.case.services.progress
                for block, size in track([*product(range(blocks), sizes)], "merge", shown=shown):
                    points[block].append((size, self._loss(replay, _alone(block, size, blocks + 1))))
            return points

        with self.case.services.watch("tokens"):
            points = self.case.services.store.keyed_by(sizes, self.images)("tokens", measure)
        return [filled(own, tokens) for own in points]

    def rule(self, limit: float) -> PlannedMerging:
        """Return the rule that changes the outputs least while the model's multiply-accumulates are within ``limit``.

        Raises ``InputError`` where no merging reaches it.
        """
        starts = {self._within(limit, power) for power in POWERS}
        with self.case.services.watch("tokens"), Spill() as kept:
            replay = self._replay(kept)
            measured = {pairs: self._loss(replay, pairs) for pairs in sorted(starts)}
            best = min(measured, key=measured.__getitem__)
            for steps in track(ROUNDS, "exchange", shown=self.case.services.progress):
                best = self._exchanged(replay, best, measured, steps * self.step, limit)
        while self.counted(PlannedMerging(best)) > limit:  # by the little that comparing pairs takes
            most = best.index(max(best))
            best = tuple(count + (place == most) for place, count in enumerate(best))
        return PlannedMerging(best)

    def counted(self, rule: PlannedMerging) -> int:
        size = input_size(self.case.model)
        assert size is not None  # whoever asks for a share of them has counted the dense model's
        return multiply_accumulates(rule(self.case.model), size)

    @cached_property
    def _rest(self) -> int:
        whole = tuple([0] * len(self.costs.mlp))
        return self.counted(PlannedMerging(whole)) - self.costs(whole)

    def _within(self, limit: float, power: float) -> Pairs:
        """Plan the cheapest path within a limit, by curves to a power; the Lagrange multiplier is found by halving."""
        curves = [curve**power for curve in self.curves]
        low, high, found = 1e-18, 1.0, None
        for _ in range(40):
            rate = math.sqrt(low * high)
            pairs = cheapest_path(curves, self.costs, rate, self.step)
            if self._rest + self.costs(pairs) <= limit:
                found, high = pairs, rate
            else:
                low = rate
        if found is None:
            raise InputError(f"no merging of tokens leaves {limit:.4g} multiply-accumulates")
        return found

    def _exchanged(self, replay: Replay, pairs: Pairs, measured: dict[Pairs, float], count: int, limit: float) -> Pairs:
        """Let one block merge more, and others less, where that is measured to be better at the same cost."""
        here, cost = measured[pairs], self.costs(pairs)
        rates = {}
        for block in range(len(pairs) - 1):
            more = self._moved(pairs, block, count)
            if more is not None:
                if more not in measured:
                    measured[more] = self._loss(replay, more)
                rates[block] = (measured[more] - here) / max(cost - self.costs(more), 1)
        tried = 0
        for gain in sorted(rates, key=rates.__getitem__):
            more = self._moved(pairs, gain, count)
            for lose in sorted(rates, key=rates.__getitem__, reverse=True):
                if lose == gain or not pairs[lose] or more is None or tried == TRIES:
                    continue
                other = self._given_back(more, lose, limit)
                if other is None or other in measured:
                    continue
                tried += 1
                measured[other] = self._loss(replay, other)
                if measured[other] < here:
                    return other
        return pairs

    def _moved(self, pairs: Pairs, block: int, count: int) -> Pairs | None:
        """Return the pairs with some more in one block; None where a block would merge more than half of its tokens."""
        moved = tuple(own + count * (place == block) for place, own in enumerate(pairs))
        tokens = self.costs.tokens
        for own in moved:
            if not 0 <= own <= (tokens - self.costs.prefix) // 2:
                return None
            tokens -= own
        return moved

    def _given_back(self, pairs: Pairs, block: int, limit: float) -> Pairs | None:
        """Merge as few pairs in a block as the limit allows; None where all that it has are needed."""
        found = None
        for fewer in range(1, pairs[block] + 1):
            other = self._moved(pairs, block, -fewer)
            if other is None or self._rest + self.costs(other) > limit:
                break
            found = other
        return found

    def _replay(self, kept: Spill) -> Replay:
        case = self.case
        return Replay(case.model, case.recipe.objective, case.images.each(), self.images, kept)

    def _loss(self, replay: Replay, pairs: Pairs) -> float:
        return replay.together(dict(PlannedMerging(pairs).blocks(self.case.model)))


def _alone(block: int, count: int, blocks: int) -> Pairs:
    return tuple(count * (place == block) for place in range(blocks))


def check_mergeable(model: nn.Module) -> None:
    """Raise ``InputError`` for a model whose tokens must stay, or that does not say the size of its images."""
    next(PlannedMerging().blocks(model), None)
    if not getattr(getattr(model, "patch_embed", None), "num_patches", None):
        raise InputError(
            "the model does not say how many patches it makes of an image, so their merging cannot be planned"
        )
    if model_size(model)[1] is None:
        raise InputError("the model does not say the size of its images, so multiply-accumulates cannot be its budget")


def merges(model: nn.Module, recipe: Recipe, size: Size) -> bool:
    """Tell whether tokens share a budget with the sizes.

    Raises ``InputError`` where the recipe asks for that, and the model or the budget does not allow it.
    """
    costs = [budget.cost for budget in budgets_of(size).parts]
    if not any(map(recipe.merges, costs)):
        return False
    try:
        if len(costs) > 1 or costs[0] not in MERGED:
            raise InputError(f"fewer tokens share no budget of {' and '.join(costs)}: give macs=0.6 or latency=0.6")
        check_mergeable(model)
    except InputError:
        if recipe.tokens:
            raise
        return False
    return True
