"""The modules that replace a linear layer, by two thin ones and a correction, and an MLP, by one with fewer hidden units."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lowrank_vit.linalg.pairs import balance
from lowrank_vit.modules import REPLACEMENTS, Replacement
from lowrank_vit.modules.pivoted_linear import PivotedLinear, as_pivoted
from lowrank_vit.records.moments import as_float64


@REPLACEMENTS.register("linear")
class LowRankLinear(Replacement):
    """Compute ``y = (x U) V^T + b`` in two matrix products, plus ``x Z`` where a correction did not fold into U and V.

    ``down.weight`` is ``U^T`` (rank, n), ``up.weight`` is ``V`` (d, rank).
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, correction: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.config = {"in_features": in_features, "out_features": out_features, "rank": rank, "bias": bias}
        self.config["correction"] = getattr(correction, "config", None)  # of which ``empty`` is given the module itself
        self.down: nn.Linear | PivotedLinear = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=bias)
        self.correction = correction

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(self.down(x))
        return y if self.correction is None else y + self.correction(x)

    @torch.no_grad()
    def pivot(self) -> None:
        """Stop storing an identity in U; V takes up the change. Raises ``TypeError`` where it is done already."""
        if not isinstance(self.down, nn.Linear):
            raise TypeError("the factors are pivoted already")
        self.down, (square,) = as_pivoted(self.down, [self.rank])
        self.up.weight.data = (as_float64(self.up.weight) @ square.T).to(self.up.weight)


def low_rank_linear(
    u: Tensor, v: Tensor, bias: Tensor | None, *, like: nn.Linear, correction: nn.Module | None = None
) -> LowRankLinear:
    """Make a ``LowRankLinear`` of balanced factors, in the dtype and on the device of the dense layer it replaces."""
    u, v = balance(as_float64(u), as_float64(v))
    layer = LowRankLinear(len(u), len(v), u.shape[1], bias is not None, correction)
    layer.down.weight.data = u.T.contiguous()
    layer.up.weight.data = v.contiguous()
    if bias is not None:
        layer.up.bias.data = bias.detach().clone()
    return layer.to(device=like.weight.device, dtype=like.weight.dtype)


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
        return self.fc2(self.act(self.fc1(x)))


@REPLACEMENTS.register("gated_mlp")
class SmallGatedMlp(SmallMlp):
    """Compute a gated MLP with fewer hidden units: the first layer makes all gates, then what they multiply."""

    rows: ClassVar[int] = 2

    def forward(self, x: Tensor) -> Tensor:
        gates, values = self.fc1(x).chunk(2, -1)
        return self.fc2(self.act(gates) * values)


SMALL_MLPS = {kind.rows: kind for kind in (SmallMlp, SmallGatedMlp)}
