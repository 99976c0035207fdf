"""The modules that replace a dense MLP: with fewer hidden units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS, Replacement


@REPLACEMENTS.register("mlp")
class SmallMlp(Replacement):
    """Compute an MLP with fewer hidden units; the layers are called ``fc1`` and ``fc2``, as timm's are."""

    rows: ClassVar[int] = 1  # of the first layer, for each hidden unit

    def __init__(self, in_features: int, hidden: int, out_features: int, bias: bool, act: nn.Module) -> None:
        super().__init__()
        self.config = {"in_features": in_features, "hidden": hidden, "out_features": out_features, "bias": bias}
        self.fc1 = nn.Linear(in_features, self.rows * hidden, bias=bias)
        self.act = act
        self.fc2 = nn.Linear(hidden, out_features)

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: Any) -> Self:
        """Make an MLP of this shape with the activation function of ``dense``."""
        return cls(act=getattr(dense, "act", nn.Identity()), **config)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


@REPLACEMENTS.register("gated_mlp")
class SmallGatedMlp(SmallMlp):
    """Compute a gated MLP with fewer hidden units: the first layer makes all gates, then what they multiply."""

    rows: ClassVar[int] = 2

    def forward(self, x: Tensor) -> Tensor:
        gates, values = self.fc1(x).chunk(2, -1)
        y: Tensor = self.fc2(self.act(gates) * values)
        return y


SMALL_MLPS = {kind.rows: kind for kind in (SmallMlp, SmallGatedMlp)}
