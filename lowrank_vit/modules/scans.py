"""The selective scan of VMamba, whole, with one hidden channel (VMeanba), or left out.

For direction k, channel d, state n, position l (Liu et al. 2024, VMamba)::

    [r, B, C] = W_x,k u_l          delta = softplus(W_dt,k r + b_dt,k)        A = -exp(A_logs)
    h_l = exp(delta A) h_(l-1) + delta u_l B          y_l = <C, h_l> + D u_l

B and C are shared by all channels of a direction; delta, A and the skip D are each channel's own.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.linalg.scans import by_direction, cross_merge, cross_scan, recurrence
from lowrank_vit.modules import REPLACEMENTS, Replacement

DIRECTIONS = 4
COUNTED = 9  # multiply-accumulates of a position, channel and state, as VMamba's authors count a scan
LEFT_OUT = "left_out"
MODES = ("inputs", "discretised", "output", LEFT_OUT)
SKIPS = ("mean", "channel")
WIDTHS = {"none": 0, "constant": 0, "mean": 1, "directions": DIRECTIONS, "pooled": -1}  # of features; -1: all channels
SCANNED = ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs")  # what a scan needs beside its skip
STEPS = (1e-3, 1e-1)  # between which delta begins


class Inputs(NamedTuple):
    """Hold what a scan reads, position by position in each direction; ``a`` is (4, D, N)."""

    u: Tensor  # shape: (L, B, 4, D)
    delta: Tensor  # shape: (L, B, 4, D)
    b: Tensor  # shape: (L, B, 4, N)
    c: Tensor  # shape: (L, B, 4, N)
    a: Tensor


class Scan(nn.Module):
    """Scan ``inner`` channels in four directions, ``state`` states each; ``rank``: of the projection that makes delta."""

    def __init__(self, inner: int, state: int, rank: int) -> None:
        super().__init__()
        self.inner, self.state, self.rank = inner, state, rank
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, rank + 2 * state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(DIRECTIONS, inner, rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(DIRECTIONS, inner))
        self.A_logs = nn.Parameter(torch.empty(DIRECTIONS * inner, state))
        self.Ds = nn.Parameter(torch.ones(DIRECTIONS * inner))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weights as Mamba does: A = -1 ... -N, and steps delta uniform in their logarithm."""
        for weight, fan in ((self.x_proj_weight, self.inner), (self.dt_projs_weight, self.rank)):
            nn.init.uniform_(weight, -(fan**-0.5), fan**-0.5)
        low, high = map(math.log, STEPS)
        delta = torch.exp(torch.rand_like(self.dt_projs_bias) * (high - low) + low)
        self.dt_projs_bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # softplus of it is delta
        self.A_logs.copy_(torch.arange(1, self.state + 1).to(self.A_logs).log().expand_as(self.A_logs))

    def inputs(self, u: Tensor) -> Inputs:
        """Return what the scan of a map, (B, H, W, D), reads: in float32 at least, for the sake of its exponentials."""
        xs = cross_scan(u)
        xs = xs.to(torch.promote_types(xs.dtype, torch.float32))
        made = torch.einsum("lbkd,kcd->lbkc", xs, self.x_proj_weight.to(xs))
        r, b, c = made.split([self.rank, self.state, self.state], -1)
        raw = torch.einsum("lbkr,kdr->lbkd", r, self.dt_projs_weight.to(xs)) + self.dt_projs_bias.to(xs)
        a = -self.A_logs.to(xs).exp().view(DIRECTIONS, self.inner, self.state)
        return Inputs(xs, F.softplus(raw), b, c, a)

    def scanned(self, seen: Inputs) -> Tensor:
        """Return the read-out of the states, without the skip: (L, B, 4, D)."""
        states = recurrence(
            (seen.delta[..., None] * seen.a).exp(), (seen.delta * seen.u)[..., None] * seen.b[..., None, :]
        )
        return (states * seen.c[..., None, :]).sum(-1)

    def skipped(self, u: Tensor) -> Tensor:
        """Return D u of all directions, merged: (B, H, W, D)."""
        return u * self.Ds.view(-1, self.inner).sum(0)

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map (B, H, W, D) to (B, H, W, D), and to None: there is nothing to add after the output layer."""
        seen = self.inputs(u)
        y = self.scanned(seen) + self.Ds.view(DIRECTIONS, -1).to(seen.u) * seen.u
        return cross_merge(y, *u.shape[1:3]).to(u.dtype), None

    def recurrence_macs(self, positions: int) -> int:
        """Count the multiply-accumulates of the recurrence itself, which no counter of matrix products sees."""
        return COUNTED * positions * DIRECTIONS * self.inner * self.state


@REPLACEMENTS.register("scan")
class SmallScan(Scan, Replacement):
    """Scan one hidden channel, the mean of all, and copy it back to each; or scan nothing at all.

    ``mode``: what is averaged: ``inputs`` (u, delta, A), ``discretised`` (exp(delta A) and delta u, the paper's figure), or
    the ``output``; ``left_out``: nothing is scanned. ``skip``: whether D u is averaged, too, or stays by channel.
    ``features``, where there are any, are mapped linearly to ``dim`` outputs that are added behind the module's output
    layer, as its norm annihilates what is the same for all channels: ``constant`` is a bias alone, ``mean`` the scan of the
    mean channel, ``directions`` its four directions apart, ``pooled`` the mean of u over the map.
    """

    compressible = True  # the layers around it can still be compressed

    def __init__(
        self, inner: int, state: int, rank: int, dim: int, mode: str, skip: str = "channel", features: str = "none"
    ) -> None:
        for value, names in ((mode, MODES), (skip, SKIPS), (features, WIDTHS)):
            if value not in names:
                raise ValueError(f"no scan is {value!r}: choose from {', '.join(names)}")
        super().__init__(inner, state, rank)
        self.mode, self.skip, self.features = mode, skip, features
        self.config = {"inner": inner, "state": state, "rank": rank, "dim": dim}
        self.config |= {"mode": mode, "skip": skip, "features": features}
        if mode == LEFT_OUT:
            for name in SCANNED:
                delattr(self, name)
            self.Ds = nn.Parameter(torch.ones(inner))
        width = inner if features == "pooled" else WIDTHS[features]
        self.weight = nn.Parameter(torch.zeros(dim, width)) if width else None
        self.bias = None if features == "none" else nn.Parameter(torch.zeros(dim))

    @classmethod
    @torch.no_grad()
    def of(cls, scan: Scan, dim: int, mode: str, skip: str = "channel", features: str = "none") -> "SmallScan":
        """Make the smaller form of a whole scan, with its weights; what it adds after the output layer is zero."""
        small = cls(scan.inner, scan.state, scan.rank, dim, mode, skip, features).to(scan.Ds)
        weights = {name: getattr(scan, name) for name in SCANNED} if mode != LEFT_OUT else {}
        weights["Ds"] = scan.Ds if weights else scan.Ds.view(DIRECTIONS, -1).sum(0)
        for name, weight in weights.items():
            getattr(small, name).copy_(weight)
        return small

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map (B, H, W, D) to (B, H, W, D), and to what is added after the output layer, (B, H, W, dim), or None."""
        if self.bias is not None:
            return self.skipped(u), self.added(u, self.bias)
        if self.mode == LEFT_OUT:
            return self.skipped(u), None
        seen, skip = self.inputs(u), self.Ds.view(DIRECTIONS, -1)
        beside = (
            skip.to(seen.u) * seen.u
            if self.skip == "channel"
            else skip.mean(1)[:, None].to(seen.u) * seen.u.mean(-1, True)
        )
        y = cross_merge(self.mean_channel(seen) + beside, *u.shape[1:3])
        return y.to(u.dtype).expand_as(u), None

    def added(self, u: Tensor, bias: Tensor) -> Tensor:
        """Return what is added after the output layer, (B, H, W, dim)."""
        return bias.expand(*u.shape[:3], -1) if self.weight is None else F.linear(self.found(u), self.weight, bias)

    def found(self, u: Tensor) -> Tensor:
        """Return the features of a map (B, H, W, D), (B, H, W, features); there must be some."""
        if self.features == "pooled":
            return u.mean((1, 2), keepdim=True).expand_as(u)
        read = by_direction(self.mean_channel(self.inputs(u)), *u.shape[1:3]).squeeze(-1).to(u.dtype)
        return read if self.features == "directions" else read.sum(-1, keepdim=True)

    def mean_channel(self, seen: Inputs) -> Tensor:
        """Return the scan of the mean channel, without the skip: (L, B, 4, 1)."""
        if self.mode == "output":
            return self.scanned(seen).mean(-1, keepdim=True)
        if self.mode == "inputs":
            u, delta, a = seen.u.mean(-1, True), seen.delta.mean(-1, True), seen.a.mean(1)
            factor, added = (delta * a).exp(), delta * u * seen.b
        else:
            factor = (seen.delta[..., None] * seen.a).exp().mean(-2)
            added = (seen.delta * seen.u).mean(-1, True) * seen.b
        return (recurrence(factor, added) * seen.c).sum(-1, keepdim=True)

    def recurrence_macs(self, positions: int) -> int:
        """Count the multiply-accumulates of the recurrence itself, which no counter of matrix products sees."""
        scanned = self.mode != LEFT_OUT and self.features not in ("constant", "pooled")
        channels = self.inner if self.mode == "output" else 1
        return super().recurrence_macs(positions) * channels // self.inner if scanned else 0


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
