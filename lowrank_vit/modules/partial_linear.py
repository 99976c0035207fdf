"""Linear layers that read some of their inputs, or make some of their outputs, so that the stream keeps its width."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS, Replacement


class PartialLinear(Replacement):
    """Hold a linear layer for the ``kept`` of its inputs, or outputs: ascending indices, which are not parameters.

    It has the sizes, weight and bias that modules around a linear layer ask for. Raises ``ValueError`` for other indices.
    """

    side: ClassVar[str]
    up: nn.Linear
    places: Tensor

    def __init__(self, in_features: int, out_features: int, kept: Sequence[int], bias: bool = True) -> None:
        super().__init__()
        count, kept = in_features if self.side == "inputs" else out_features, list(kept)
        whole = all(type(index) is int for index in kept)
        if not whole or kept != sorted(set(kept)) or any(not 0 <= index < count for index in kept):
            raise ValueError(f"kept {self.side} are ascending indices below {count}, not {kept}")
        self.in_features, self.out_features, self.kept = in_features, out_features, kept
        self.config = {"in_features": in_features, "out_features": out_features, "kept": kept, "bias": bias}

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear, kept: Tensor) -> Self:
        """Keep some inputs, or outputs, of a linear layer, (kept,), on its device and in its type."""
        small = cls(linear.in_features, linear.out_features, kept.tolist(), linear.bias is not None)
        small.to(device=linear.weight.device, dtype=linear.weight.dtype)
        inputs = small.side == "inputs"
        small.up.weight.copy_(linear.weight[:, kept] if inputs else linear.weight[kept])
        if linear.bias is not None:
            small.up.bias.copy_(linear.bias if inputs else linear.bias[kept])
        return small

    @property
    def weight(self) -> Tensor:
        """Return the weight of the inputs that are read, (d, kept), or of the outputs that are made, (kept, n)."""
        return self.up.weight

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, kept={len(self.kept)}"


@REPLACEMENTS.register("select")
class SelectInput(PartialLinear):
    """Compute ``y = x[kept] W + b``."""

    side: ClassVar[str] = "inputs"

    def __init__(self, in_features: int, out_features: int, kept: Sequence[int], bias: bool = True) -> None:
        super().__init__(in_features, out_features, kept, bias)
        self.up = nn.Linear(len(self.kept), out_features, bias=bias)
        self.register_buffer("places", torch.tensor(self.kept, dtype=torch.long), persistent=False)

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: Any) -> Self:
        """Make a layer of this shape. Raises ``ValueError`` where ``dense`` is given inputs of another width."""
        small = cls(**config)
        width = getattr(dense, "in_features", small.in_features)
        if width != small.in_features:
            raise ValueError(f"in_features is {small.in_features}, of a layer that is given {width}")
        return small

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x.index_select(-1, self.places))


@REPLACEMENTS.register("scatter")
class ScatterOutput(PartialLinear):
    """Compute ``y[kept] = x W + b``, zero elsewhere."""

    side: ClassVar[str] = "outputs"

    def __init__(self, in_features: int, out_features: int, kept: Sequence[int], bias: bool = True) -> None:
        super().__init__(in_features, out_features, kept, bias)
        self.up = nn.Linear(in_features, len(self.kept), bias=bias)
        places = torch.full((out_features,), len(self.kept))  # of the zero behind the outputs that are made
        places[self.kept] = torch.arange(len(self.kept))
        self.register_buffer("places", places, persistent=False)

    def spread(self, values: Tensor) -> Tensor:
        """Write values of the outputs that are made, (..., kept), to their places, (..., d)."""
        return torch.cat([values, values.new_zeros(*values.shape[:-1], 1)], -1)[..., self.places]

    def forward(self, x: Tensor) -> Tensor:
        return self.spread(self.up(x))
