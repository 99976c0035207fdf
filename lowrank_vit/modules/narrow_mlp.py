"""The module that replaces a dense MLP: one with fewer hidden units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS


@REPLACEMENTS.register("mlp")
class SmallMlp(nn.Module):
    """An MLP with fewer hidden units; the layers are called ``fc1`` and ``fc2`` as timm's are."""

    def __init__(self, in_features: int, hidden: int, out_features: int, bias: bool, act: nn.Module) -> None:
        super().__init__()
        self.config = {"in_features": in_features, "hidden": hidden, "out_features": out_features, "bias": bias}
        self.fc1 = nn.Linear(in_features, hidden, bias=bias)
        self.act = act
        self.fc2 = nn.Linear(hidden, out_features)

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: nn.Module) -> SmallMlp:
        """Make an MLP of this shape with the activation function of ``dense``."""
        return cls(act=getattr(dense, "act", nn.Identity()), **config)

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (..., n) to (..., d)."""
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y
