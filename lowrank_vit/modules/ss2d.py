"""VMamba's token mixer, whichever scan it has."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.modules.scans import Scan


class SS2D(nn.Module):
    """Mix tokens as VMamba does: a projection, a convolution of each channel, the scan, a norm, a projection back.

    ``gated``: the projection makes a gate, too, which multiplies the normed output by its SiLU (v0). ``kernel``: of the
    convolution; 1 has none. State dicts have the scan's weights under the names of the official checkpoints, beside the
    projections. Computes (B, H, W, n) from (B, H, W, n).
    """

    def __init__(
        self, dim: int, inner: int, state: int, *, gated: bool = False, kernel: int = 3, conv_bias: bool = False
    ) -> None:
        super().__init__()
        self.gated = gated
        self.in_proj = nn.Linear(dim, inner * (1 + gated), bias=False)
        self.conv2d: nn.Module = nn.Identity()
        if kernel > 1:
            self.conv2d = nn.Conv2d(inner, inner, kernel, padding=kernel // 2, groups=inner, bias=conv_bias)
        self.act = nn.SiLU()
        self.scan: nn.Module = Scan(inner, state, math.ceil(dim / 16))
        self.out_norm: nn.Module = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.register_state_dict_post_hook(_official_names)

    @property
    def whole_scan(self) -> Scan:
        """Return the scan, whether it is a smaller one or not."""
        assert isinstance(self.scan, Scan)
        return self.scan

    def read(self, projected: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the scan's input, (B, H, W, D), and the gate, given the output of the first projection."""
        u, gate = projected.chunk(2, -1) if self.gated else (projected, None)
        u = self.conv2d(u.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.act(u), gate

    def written(self, y: Tensor, gate: Tensor | None) -> Tensor:
        """Return the output layer's input, given the scan's output, (B, H, W, D)."""
        normed: Tensor = self.out_norm(y)
        return normed if gate is None else normed * F.silu(gate)

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (B, H, W, n) to (B, H, W, n)."""
        u, gate = self.read(self.in_proj(x))
        y, beside = self.scan(u)
        output: Tensor = self.out_proj(self.written(y, gate))
        return output if beside is None else output + beside

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.scan.state_dict():
            if f"{prefix}{name}" in state_dict:
                state_dict[f"{prefix}scan.{name}"] = state_dict.pop(f"{prefix}{name}")
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _official_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Name the scan's weights in a state dict as official checkpoints do: next to those of the layers around it."""
    inside = f"{prefix}scan."
    for name in [name for name in state_dict if name.startswith(inside)]:
        state_dict[prefix + name.removeprefix(inside)] = state_dict.pop(name)
