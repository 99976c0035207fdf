"""What is left of norms and of LayerScale once linear layers have taken up their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lowrank_vit.modules import REPLACEMENTS


@REPLACEMENTS.register("norm")
class PlainNorm(nn.LayerNorm):
    """A layer norm without scale and shift: the linear layers behind it have them."""

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
    """Nothing, where LayerScale was: the linear layer before it has its factors."""

    @property
    def config(self) -> dict[str, Any]:
        """Return nothing: it has no shape."""
        return {}

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: object) -> Unscaled:
        """Make one."""
        return cls(**config)
