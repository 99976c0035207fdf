"""The number of parameters, as the paper counts."""

from __future__ import annotations

from lowrank_vit.records.costs import COSTS, PARAMETERS, Cost


@COSTS.register(PARAMETERS)
def parameters(cost: Cost) -> int:
    """Count parameters."""
    return cost.parameters
