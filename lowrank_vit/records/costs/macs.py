"""Multiply-accumulates of one image."""

from __future__ import annotations

from lowrank_vit.records.costs import COSTS, Cost


@COSTS.register("macs")
def macs(cost: Cost) -> int:
    """Count the multiply-accumulates of one image."""
    return cost.macs
