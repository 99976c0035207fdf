"""A Triton kernel for two thin products in one launch; imported only where it runs, as not every torch has Triton."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

ROWS, INPUTS, OUTPUTS = 16, 64, 64  # of a tile; 16 is the least that tensor cores multiply
LEAST_RANK = 16
WARPS, STAGES = 8, 2  # compiled for Hopper, no rank up to 256 spills registers


@triton.jit
def _pair(  # type: ignore[no-untyped-def]  # Triton reads annotations, and knows few
    x,
    down,
    up,
    bias,
    y,
    rows: int,
    inputs: int,
    outputs: int,
    rank: int,
    has_bias: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_inputs: tl.constexpr,
    tile_outputs: tl.constexpr,
    tile_rank: tl.constexpr,
) -> None:
    """Compute one tile of y: the first product for its rows, which stays in registers, then the second."""
    row = (tl.program_id(0) * tile_rows + tl.arange(0, tile_rows))[:, None]
    output = (tl.program_id(1) * tile_outputs + tl.arange(0, tile_outputs))[None, :]
    direction = tl.arange(0, tile_rank)
    thin = tl.full((tile_rows, tile_rank), 0.0, tl.float32)
    for start in range(0, inputs, tile_inputs):
        channel = start + tl.arange(0, tile_inputs)
        taken = tl.load(x + row * inputs + channel[None, :], (row < rows) & (channel[None, :] < inputs), 0.0)
        within = (direction[None, :] < rank) & (channel[:, None] < inputs)
        weight = tl.load(down + direction[None, :] * inputs + channel[:, None], within, 0.0)
        thin = tl.dot(taken, weight, thin)
    weight = tl.load(up + output * rank + direction[:, None], (output < outputs) & (direction[:, None] < rank), 0.0)
    result = tl.dot(thin.to(weight.dtype), weight)
    if has_bias:
        result += tl.load(bias + output, output < outputs, 0.0).to(tl.float32)
    tl.store(y + row * outputs + output, result.to(weight.dtype), (row < rows) & (output < outputs))


def pair(x: Tensor, down: Tensor, up: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``x down^T up^T + bias`` in one launch: x (m, n), down (rank, n), up (d, rank), bias (d,); returns (m, d).

    All are bfloat16, or all float16. Sums are in float32; in between, a row is rounded to that type, as two products
    round it. Memory is read fastest where n, d and the rank are multiples of 16.
    """
    (rows, inputs), (outputs, rank) = x.shape, up.shape
    y = x.new_empty(rows, outputs)
    tiles = triton.cdiv(rows, ROWS), triton.cdiv(outputs, OUTPUTS)
    _pair[tiles](
        x.contiguous(),
        down.contiguous(),
        up.contiguous(),
        y if bias is None else bias,
        y,
        rows,
        inputs,
        outputs,
        rank,
        has_bias=bias is not None,
        tile_rows=ROWS,
        tile_inputs=INPUTS,
        tile_outputs=OUTPUTS,
        tile_rank=max(LEAST_RANK, triton.next_power_of_2(rank)),
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return y
