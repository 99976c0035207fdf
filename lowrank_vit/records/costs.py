"""What a size costs, and the kinds of cost in which a budget can be given."""

from collections.abc import Callable
from dataclasses import dataclass

from lowrank_vit.runtime.registry import Registry


@dataclass(frozen=True)
class Cost:
    """Hold the parameters of a module, and the multiply-accumulates that it takes for one image."""

    parameters: int = 0
    macs: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.parameters + other.parameters, self.macs + other.macs)

    def __mul__(self, count: int) -> "Cost":
        return Cost(count * self.parameters, count * self.macs)


NOTHING = Cost()


@dataclass(frozen=True)
class UnitCosts:
    """Hold what a unit costs: ``unit`` for each of its ``count`` directions, ``fixed`` beside them, ``dense`` as it was.

    ``head_width``: of directions that make pairs of factors, head by head; r of a head hold an identity of r x r entries.
    None where there are no such pairs.
    """

    count: int
    unit: Cost
    dense: Cost
    fixed: Cost = NOTHING
    head_width: int | None = None


PARAMETERS = "parameters"  # the cost in which a reduction is given unless another is named
COSTS: Registry[Callable[[Cost], int]] = Registry("cost")


@COSTS.register(PARAMETERS)
def parameters(cost: Cost) -> int:
    """Count parameters."""
    return cost.parameters


@COSTS.register("macs")
def macs(cost: Cost) -> int:
    """Count the multiply-accumulates of one image."""
    return cost.macs


FLOAT32 = 4  # bytes


@COSTS.register("bytes")
def stored_bytes(cost: Cost) -> int:
    """Count the bytes of the parameters in float32."""
    return FLOAT32 * cost.parameters
