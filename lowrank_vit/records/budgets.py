"""What a model may cost after its compression: a share of what the dense one costs, or an amount."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

from lowrank_vit.records.costs import COSTS, PARAMETERS
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import unknown

LATENCY = "latency"  # nanoseconds of a batch on this machine; the only cost that has to be measured
NAMES = {"params": PARAMETERS}  # what a user may write for a cost
COUNTS = {"k": 1e3, "M": 1e6, "G": 1e9}
UNITS = {
    PARAMETERS: COUNTS,
    "macs": COUNTS,
    "bytes": {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    LATENCY: {"us": 1e3, "ms": 1e6, "s": 1e9},
}
SHARE, REMOVED = "", "removed"  # how a number without a unit is meant
EXAMPLES = "params=0.5, macs=0.5, bytes=6MiB, latency=0.6 or latency=12ms"
TENTHS = 1e4  # of a per cent: how exactly a range is named


@dataclass(frozen=True)
class Budget:
    """Hold a limit on one ``cost`` of the whole model.

    ``number`` has a ``unit`` of the cost, or is a share of the dense model's cost: the one that remains or, as
    reductions are given, the one that is removed.

    >>> parse_budget("bytes=6MiB").limit(10**8)
    6291456.0
    >>> parse_budget("macs=0.5").limit(1000) == reduction_to(0.5, "macs").limit(1000) == 500
    True
    """

    cost: str
    number: float
    unit: str = SHARE

    def limit(self, dense: int) -> float:
        """Return the most that may remain of what the dense model costs."""
        if self.unit == REMOVED:
            return dense * (1 - self.number)
        return self.number * (dense if self.unit == SHARE else UNITS[self.cost][self.unit])

    def reach(self, least: int, dense: int) -> str:
        """Name the budgets between ``least``, the smallest model's cost, and the dense model's, as this one is given."""
        if self.unit == REMOVED:
            return f"0 (not included) to {int((dense - least) / dense * TENTHS) / TENTHS:g}"
        one = dense if self.unit == SHARE else UNITS[self.cost][self.unit]
        return (
            f"{math.ceil(least / one * TENTHS) / TENTHS:.10g}{self.unit} to {dense / one:.6g}{self.unit} (not included)"
        )

    def __str__(self) -> str:
        name = next((short for short, cost in NAMES.items() if cost == self.cost), self.cost)
        if self.unit == REMOVED:
            return f"reduction {self.number:g}" + ("" if self.cost == PARAMETERS else f" of {name}")
        return f"{name}={self.number:g}{self.unit}"


@dataclass(frozen=True)
class Budgets:
    """Hold several limits, each on another cost; a model keeps within all of them.

    >>> str(budgets_of("params=0.5,latency=12ms"))
    'params=0.5,latency=12ms'
    """

    parts: tuple[Budget, ...]

    def __post_init__(self) -> None:
        costs = [part.cost for part in self.parts]
        if not costs or len(set(costs)) < len(costs):
            raise InputError(f"budgets {self} limit one cost twice: give each cost one limit")

    def __str__(self) -> str:
        return ",".join(map(str, self.parts))


class OutOfReachError(InputError):
    """Report a budget that no choice of sizes meets; ``reach`` names those that one does."""

    reach: str


Size = float | str | Mapping[str, float | str] | Budget | Budgets  # as users give one; a number is a reduction


def reduction_to(share: float, cost: str = PARAMETERS) -> Budget:
    """Return the budget that is left where ``share`` of a cost is removed."""
    return Budget(cost, share, REMOVED)


def budgets_of(size: Size, cost: str = PARAMETERS) -> Budgets:
    """Read one budget or several: ``"macs=0.5"``, ``{"macs": 0.5, "bytes": "6MiB"}``, or a number.

    A number is the share of ``cost`` to remove. Raises ``InputError`` for an unknown cost or unit, and for anything else.
    """
    if isinstance(size, Budgets):
        return size
    if isinstance(size, Budget):
        return Budgets((size,))
    if isinstance(size, str):
        return Budgets(tuple(map(parse_budget, size.split(","))))
    if not isinstance(size, Mapping):
        return Budgets((reduction_to(_share(size, cost), cost),))
    if not size:
        raise InputError(f"a budget has one cost, not 0: give one of {EXAMPLES}")
    return Budgets(tuple(parse_budget(f"{name}={value}") for name, value in size.items()))


def budget_of(size: Size, cost: str = PARAMETERS) -> Budget:
    """Read one budget, as ``budgets_of`` does. Raises ``InputError``, too, where there are several."""
    parts = budgets_of(size, cost).parts
    if len(parts) != 1:
        raise InputError(f"here a budget has one cost, not {len(parts)}: give one of {EXAMPLES}")
    return parts[0]


def parse_budget(text: str) -> Budget:
    """Read ``COST=SHARE``, the share that remains, or ``COST=AMOUNT`` with a unit.

    Raises ``InputError`` for an unknown cost or unit, and for a number that is neither.
    """
    name, equals, value = text.partition("=")
    if re.fullmatch(r"\s*\d*\.?\d+\s*", name):
        raise InputError(f"budget {name} names no cost: did you mean params={name}?")
    cost = NAMES.get(name.strip(), name.strip())
    if equals and cost not in (*COSTS.names(), LATENCY):
        raise unknown("budget", name.strip(), [*NAMES, *UNITS])
    number, unit = _number(text, value)
    units = UNITS.get(cost, {})
    if unit and unit not in units:
        raise unknown(f"unit of {name.strip()}", unit, units or ["none: give a share"])
    if not unit and not 0 < number < 1:
        raise InputError(
            f"budget {text} is out of reach: without a unit, it is the share that remains of the dense model's, between 0 "
            f"and 1; an amount has one of the units {', '.join(units)}"
        )
    return Budget(cost, number, unit)


def parse_budgets(text: str) -> dict[str, Size]:
    """Read ``COST=VALUE[,VALUE...]``: budgets by the text of their values, which names their folders.

    ``COST=VALUE,COST=VALUE`` is one size, within all of these budgets.
    """
    name, _, values = text.partition("=")
    if "=" in values:
        return {text: budgets_of(text)}
    return {value.strip(): parse_budget(f"{name}={value.strip()}") for value in values.split(",")}


def _share(reduction: object, cost: str) -> float:
    """Read the share to remove; whether a model reaches it is seen later."""
    if not isinstance(reduction, Real):
        raise InputError(f"a reduction is a number, not {reduction!r}: give the share to remove, such as 0.25 for 25 %")
    share = float(reduction)
    if share > 1:
        raise InputError(f"reduction {share:g} is out of reach: it is a share of the {cost}, such as 0.25 for 25 %")
    return share


def _number(text: str, value: str) -> tuple[float, str]:
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*([A-Za-z]*)\s*", value)
    if match is None:
        raise InputError(
            f"{text!r} cannot be read: give a budget like {EXAMPLES}, or a reduction as a number, such as 0.25 for 25 %"
        )
    return float(match[1]), match[2]
