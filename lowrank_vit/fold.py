"""From a layer's factors to the module that is deployed in its place."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lowrank_vit.layers import LowRankLinear, low_rank_linear
from lowrank_vit.records import Site, as_float64


@dataclass(frozen=True)
class CutLayer:
    """One layer at its rank: ``W^ = U V^T + Z``, of which a low-rank Z has joined U and V as ``[U G][V Y]^T``."""

    site: Site
    rank: int  # of U V^T without Z
    u: Tensor  # shape: (n, r + q)
    v: Tensor  # shape: (d, r + q)
    correction: nn.Module | None  # a Z that does not fold
    z: dict[str, float | str] | None  # kind, parameters and losses
    shift: Tensor | None  # shape: (d,), what is added to the bias

    @property
    def parameters(self) -> int:
        """Parameters of the deployed layer, less the bias that the dense one has, too."""
        added_bias = self.site.out_features if self.shift is not None and not self.site.bias else 0
        correction = 0 if self.correction is None else sum(p.numel() for p in self.correction.parameters())
        return self.u.numel() + self.v.numel() + correction + added_bias


def fold(layer: CutLayer, linear: nn.Linear) -> LowRankLinear:
    """The module that takes the place of ``linear``: one pair of balanced factors, the corrected bias, Z beside."""
    bias: Tensor | None = linear.bias
    if layer.shift is not None:
        bias = layer.shift if bias is None else as_float64(bias) + layer.shift
    return low_rank_linear(layer.u, layer.v, bias, like=linear, correction=layer.correction)
