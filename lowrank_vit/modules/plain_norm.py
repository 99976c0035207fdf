"""What replaces norms and LayerScale once linear layers have taken up their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lowrank_vit.modules import REPLACEMENTS


@REPLACEMENTS.register("norm")
class PlainNorm(nn.LayerNorm):
    """Apply a layer norm without scale and shift, which the linear layers after it have taken up."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps, elementwise_affine=False)

    @property
    def config(self) -> dict[str, Any]:
        """Return the width, and what is added to the variance."""
        return {"width": self.normalized_shape[0], "eps": self.eps}

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: object) -> PlainNorm:
        """Make a norm of this width."""
        return cls(**config)


@REPLACEMENTS.register("unscaled")
class Unscaled(nn.Identity):
    """Return the input, in place of a LayerScale whose factors the linear layer before it has taken up."""

    @property
    def config(self) -> dict[str, Any]:
        """Return nothing: it has no shape."""
        return {}

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: object) -> Unscaled:
        """Make one."""
        return cls(**config)
