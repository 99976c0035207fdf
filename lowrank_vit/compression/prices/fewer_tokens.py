"""A cost of a model that hands on fewer tokens: every size is priced by the tokens that its block still sees."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from lowrank_vit.compression.prices import Price
from lowrank_vit.modules.counting import input_size, tokens_per_image
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.stages.tokens import TokenRule
from lowrank_vit.units.base import Unit


@dataclass(frozen=True, kw_only=True)
class FewerTokens(Price):
    """Count the cost ``whole`` with the tokens that ``rule`` leaves; budgets are shares of the dense model's with all tokens.

    Multiply-accumulates of every size are exact but for padding; a module's times shrink as its multiply-accumulates do.
    """

    whole: Price
    rule: TokenRule

    @classmethod
    def of(cls, whole: Price, rule: TokenRule) -> "FewerTokens":
        return cls(whole.cost, whole.model, whole.setting, whole.start, whole=whole, rule=rule)

    @property
    def corrections(self) -> float:  # type: ignore[override]  # as the whole's
        return self.whole.corrections

    @property
    def where(self) -> dict[str, Any]:
        return self.whole.where

    @cached_property
    def dense(self) -> int:
        return self.whole.dense

    @cached_property
    def uncut(self) -> int:
        """Return what the model that units are cut from costs with fewer tokens."""
        return self.whole.count(self.rule(self.base))

    def rest(self, curves: Sequence[ErrorCurve]) -> int:
        return self.uncut - sum(curve.dense_cost for curve in curves)

    def priced(self, curves: Sequence[ErrorCurve], decomposed: Sequence[Unit] = ()) -> list[ErrorCurve]:
        """Price the sizes of the decomposed units ``decomposed`` by the tokens that reach them."""
        size = input_size(self.base)
        assert size is not None  # whoever counts the whole has said so
        tokens = tokens_per_image(self.rule(self.base), [each.linears[0].name for each in decomposed], size)
        before, fewer = 0, dict[str, ErrorCurve]()
        # a block that computes some tokens alone applies parts of its layers: half of the weights are those of keys and
        # values, which all tokens have
        for each in decomposed:
            name = each.linears[0].name
            tokens[name] = before = tokens.get(name) or max(1, before // 2)
            fewer |= {curve.name: curve for curve in replace(each, tokens=before).curves()}
        return [_repriced(curve, fewer[curve.name]) for curve in self.whole.priced(curves, decomposed)]

    def count(self, small: nn.Module) -> int:
        return self.whole.count(self.rule(small))

    def misses(self, counted: int, limit: float) -> bool:
        """Tell whether a model that costs ``counted`` is to be planned again."""
        return self.whole.misses(counted, limit)


def _repriced(curve: ErrorCurve, fewer: ErrorCurve) -> ErrorCurve:
    """Return the curve with the costs that ``fewer`` tokens have; times shrink by one factor."""
    table = curve.table
    if table is not None:
        share = fewer.dense.macs / max(curve.dense.macs, 1)
        table = tuple(round(cost * share) for cost in table)
    return replace(curve, unit=fewer.unit, dense=fewer.dense, fixed=fewer.fixed, table=table)
