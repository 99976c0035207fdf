"""Time of a batch on this machine: sizes are priced by the times of their modules, and the whole model is measured.

A module with several units has no time of each: a unit's is the mean of what it saves while the others keep their full
size, and of what it saves while they are reduced by the same share. So the units' times add up to that of the module where
all are reduced by one share.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from statistics import median
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_vit.compression.prices import PRICES, Price
from lowrank_vit.compression.runtimes import call_in, settings
from lowrank_vit.modules.counting import input_size
from lowrank_vit.modules.surgery import hooked
from lowrank_vit.records.budgets import LATENCY
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import agreed, is_first
from lowrank_vit.stages.evaluate.speed import Call, ModuleTimes, in_turns, prepared
from lowrank_vit.units.base import Unit

SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)  # of a unit's directions at which its module is timed
NANO = 1e9
GRAINS = 100_000  # of the dense model's time, in which prices are rounded: allocators take long over finer ones
TOLERANCE, TOLERANCE_OF_ONE = 0.1, 0.2  # by which a measured time may be below its budget, of many images and of one
CORRECTIONS = 4  # plans more, with what the last one missed the budget by
Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Sizes = tuple[int, ...]  # of a module's units, in their order


@PRICES.register(LATENCY)
@dataclass(frozen=True)
class Latency(Price):
    """Measure the nanoseconds of a batch in a setting."""

    before_images: ClassVar[bool] = False
    knows_z: ClassVar[bool] = False
    corrections: ClassVar[float] = CORRECTIONS

    @property
    def where(self) -> dict[str, Any]:
        return {**asdict(self.setting), "threads": torch.get_num_threads()}

    @cached_property
    def images(self) -> Tensor:
        """Make a batch. Raises ``InputError`` where their size is not known, or the setting cannot be run."""
        size = input_size(self.model)
        if size is None:
            raise InputError("the model does not say what images it takes, so it cannot be timed: give params or bytes")
        settings(self.setting.device, [self.setting.mode], [self.setting.batch])
        dtype = getattr(torch, self.setting.dtype)
        return torch.randn(self.setting.batch, *size, device=self.setting.device, dtype=dtype)

    @cached_property
    def dense(self) -> int:
        name = f"whole {described(self.model, (self.images,))}"
        make = partial(self._call, self.model, ((self.images,), {}))
        return round(NANO * ModuleTimes(self.setting).seconds({name: make})[name])

    def rest(self, curves: Sequence[ErrorCurve]) -> int:
        """Return the time outside the units: the form that they are cut from takes as long as the dense model."""
        return self.dense - sum(curve.dense_cost for curve in curves)

    def count(self, small: nn.Module) -> int:
        inputs: Inputs = (self.images,), {}
        calls = {"dense": self._call(self.model, inputs), "small": self._call(small, inputs)}
        times = agreed(in_turns(calls, self.setting) if is_first() else None)
        assert times is not None
        ratio = median(less / whole for less, whole in zip(times["small"], times["dense"], strict=True))
        return round(self.dense * ratio)

    def misses(self, counted: int, limit: float) -> bool:
        """Tell whether a measured time is above the budget, or too far below it."""
        tolerance = TOLERANCE_OF_ONE if self.setting.batch == 1 else TOLERANCE
        return not (1 - tolerance) * limit <= counted <= limit

    def priced(self, curves: Sequence[ErrorCurve], decomposed: Sequence[Unit] = ()) -> list[ErrorCurve]:
        """Return the curves with times for costs, measured where the machine's table does not have them."""
        own = {curve.name: curve for curve in curves}
        grids = [Grid(module, [own[curve.name] for curve in module.curves()]) for module in decomposed]
        ready = prepared(self.base, replace(self.setting, mode="eager"))
        inputs = inputs_of(ready, [grid.name for grid in grids], self.images)
        names = {grid.name: grid.described(self.base, inputs[grid.name]) for grid in grids}
        calls: dict[str, Callable[[], Call]] = {}
        for grid in grids:
            name, given = names[grid.name], inputs[grid.name]
            calls.setdefault(f"{name} dense", partial(self._call, self.base.get_submodule(grid.name), given))
            for sizes in grid.points:
                calls.setdefault(f"{name} {sizes}", partial(self._folded, grid, sizes, given))
        seconds = ModuleTimes(self.setting).seconds(calls)
        grain = max(1, self.dense // GRAINS)
        tables: dict[str, tuple[int, ...]] = {}
        for grid in grids:
            times = {sizes: NANO * seconds[f"{names[grid.name]} {sizes}"] for sizes in grid.points}
            tables |= grid.tables(NANO * seconds[f"{names[grid.name]} dense"], times, grain)
        return [replace(curve, table=tables[curve.name]) for curve in curves]

    def _call(self, module: nn.Module, inputs: Inputs) -> Call:
        return call_in(module, self.setting, *inputs)

    def _folded(self, grid: "Grid", sizes: Sizes, inputs: Inputs) -> Call:
        return self._call(grid.folded(sizes), inputs)


@dataclass(frozen=True)
class Grid:
    """Hold the sizes at which a module is timed, and what they say of each of its units."""

    decomposed: Unit
    curves: Sequence[ErrorCurve]

    @property
    def name(self) -> str:
        return self.decomposed.name

    @property
    def full(self) -> Sizes:
        return tuple(len(curve.errors) - 1 for curve in self.curves)

    def at(self, share: float) -> Sizes:
        """Return the size of every unit that keeps a share of its directions."""
        steps = [(count, curve.multiple) for count, curve in zip(self.full, self.curves, strict=True)]
        return tuple(min(count, max(1, round(share * count / step)) * step) for count, step in steps)

    def around(self, share: float, unit: int) -> tuple[Sizes, Sizes]:
        """Return the sizes with only one unit reduced to a share, and the sizes with all others reduced to it."""
        full, small = self.full, self.at(share)
        alone = tuple(small[index] if index == unit else count for index, count in enumerate(full))
        others = tuple(full[index] if index == unit else count for index, count in enumerate(small))
        return alone, others

    @property
    def points(self) -> list[Sizes]:
        pairs = [self.around(share, unit) for share in SHARES for unit in range(len(self.curves))]
        return list(dict.fromkeys([*map(self.at, SHARES), *(sizes for pair in pairs for sizes in pair)]))

    def folded(self, sizes: Sizes) -> nn.Module:
        ranks = {curve.name: size for curve, size in zip(self.curves, sizes, strict=True)}
        return self.decomposed.cut(ranks).fold()

    def described(self, model: nn.Module, inputs: Inputs) -> str:
        module = described(model.get_submodule(self.name), [*inputs[0], *inputs[1].values()])
        return f"{type(self.decomposed).__name__} of {module}"

    def tables(self, dense: float, times: Mapping[Sizes, float], grain: int) -> dict[str, tuple[int, ...]]:
        """Return the cost of every size of each unit, the dense one last; ``times``: the module's at all points."""
        count, whole, tables = len(self.curves), times[self.full], {}
        for unit, curve in enumerate(self.curves):
            costs = {}
            for share in SHARES:
                alone, others = self.around(share, unit)
                saved = (whole - times[alone] + times[others] - times[self.at(share)]) / 2
                costs[alone[unit]] = whole / count - saved
            sizes = sorted(costs)
            line = np.interp(range(self.full[unit] + 1), sizes, [costs[size] for size in sizes])
            rising = np.maximum.accumulate(line).tolist()  # a smaller size that took longer did so by chance
            tables[curve.name] = tuple(round(cost / grain) * grain for cost in (*rising, dense / count))
        return tables


def described(module: nn.Module, inputs: Iterable[object]) -> str:
    """Describe a module and its inputs by their shapes."""
    weights = [tuple(parameter.shape) for parameter in module.parameters()]
    given = [tuple(value.shape) if isinstance(value, Tensor) else value for value in inputs]
    return f"{type(module).__name__} {weights} for {given}"


def inputs_of(model: nn.Module, names: Iterable[str], images: Tensor) -> dict[str, Inputs]:
    """Return the inputs of modules in a forward pass."""
    seen: dict[str, Inputs] = {}
    hooks = (
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, kwargs, name=name: seen.__setitem__(name, (args, kwargs)), with_kwargs=True
        )
        for name in names
    )
    with hooked(hooks), torch.inference_mode():
        model(images)
    return seen
