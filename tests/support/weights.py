"""Weights of models, copied and compared."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all tensors of a model."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: nn.Module | Mapping[str, Tensor], other: nn.Module | Mapping[str, Tensor]) -> bool:
    """Whether two models, or what ``weights`` has of them, are the same to the last bit."""
    left, right = (each.state_dict() if isinstance(each, nn.Module) else each for each in (one, other))
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
