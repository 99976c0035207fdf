"""How a kind of cost is counted: on a whole model, and for every size of a unit; one file for each kind.

Prices add up over the units. Where that is not the whole truth, ``count`` says what a model really costs, and the plan is
made again until the model keeps within its budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn

from lowrank_vit.modules.counting import model_size
from lowrank_vit.records.costs import COSTS, Cost
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.evaluate.speed import Setting
from lowrank_vit.units.base import Unit


@dataclass(frozen=True)
class Price:
    """Count a cost whose prices add up exactly; ``model``: the dense one, ``setting``: where the smaller one is to run.

    ``start``: the dense one in the form that units are cut from, where that is another.
    """

    cost: str
    model: nn.Module
    setting: Setting
    start: nn.Module | None = None

    before_images: ClassVar[bool] = True  # whether sizes can be priced before an image is seen
    by_token: ClassVar[bool] = True  # whether a price depends on the number of tokens
    knows_z: ClassVar[bool] = True  # whether a Z can be priced before it is fitted
    corrections: ClassVar[float] = 0  # how often a plan is made again by what its model really costs

    @cached_property
    def dense(self) -> int:
        """Return what the dense model costs."""
        parameters, macs = model_size(self.model)
        return COSTS.get(self.cost)(Cost(parameters, macs or 0))

    @property
    def base(self) -> nn.Module:
        """Return the model that units are cut from."""
        return self.model if self.start is None else self.start

    def rest(self, curves: Sequence[ErrorCurve]) -> int:
        """Return what the model costs beside its units; ``curves``: of all units, in this cost."""
        start = self if self.start is None else type(self)(self.cost, self.base, self.setting)
        return start.dense - sum(curve.dense_cost for curve in curves)

    @property
    def where(self) -> dict[str, Any]:
        """Describe the machine and how the model ran on it, where the cost depends on them."""
        return {}

    def priced(self, curves: Sequence[ErrorCurve], decomposed: Sequence[Unit] = ()) -> list[ErrorCurve]:
        """Return the curves with prices in this cost; ``decomposed``: the decomposed units that they belong to."""
        return [replace(curve, price=self.cost) for curve in curves]

    def count(self, small: nn.Module) -> int:
        """Return what a smaller model costs."""
        raise NotImplementedError

    def misses(self, counted: int, limit: float) -> bool:
        """Tell whether a model that costs ``counted`` is to be planned again."""
        return counted > limit


PRICES: Registry[type[Price]] = Registry("price", __name__)


def setting_of(model: nn.Module, dtype: torch.dtype | None = None, batch: int = 1, mode: str = "eager") -> Setting:
    """Return the setting of a model where it is, in its own type unless another is given."""
    parameter = next(model.parameters())
    name = str(dtype or parameter.dtype).removeprefix("torch.")
    return Setting(str(parameter.device), name, mode, batch)


def price_of(cost: str, model: nn.Module, setting: Setting, start: nn.Module | None = None) -> Price:
    """Return the price of a cost. Raises ``InputError`` for an unknown cost."""
    start = None if start is model else start
    if cost in PRICES.names():
        return PRICES.get(cost)(cost, model, setting, start)
    COSTS.get(cost)
    return Price(cost, model, setting, start)


def check_z(price: Price, compensation: object) -> None:
    """Raise ``InputError`` for a cost that does not know a Z, where the recipe has one."""
    if compensation is not None and not price.knows_z:
        raise InputError(
            f"what a compensation Z adds in {price.cost} is not known before it is fitted: give a budget of params or macs"
        )
