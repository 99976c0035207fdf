"""Bytes on disk of float32 weights."""

from __future__ import annotations

from lowrank_vit.records.costs import COSTS, Cost

FLOAT32 = 4  # bytes


@COSTS.register("bytes")
def stored_bytes(cost: Cost) -> int:
    """Count the bytes of the parameters in float32."""
    return FLOAT32 * cost.parameters
