"""What is left of a removed block, and of norms and LayerScale once linear layers have taken up their weights."""

from typing import Any

from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS, Replacement


@REPLACEMENTS.register("norm")
class PlainNorm(Replacement, nn.LayerNorm):
    """Apply a layer norm without scale and shift, which the linear layers after it have taken up."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps, elementwise_affine=False)
        self.config = {"width": width, "eps": eps}


@REPLACEMENTS.register("unscaled")
class Unscaled(Replacement, nn.Identity):
    """Return the input, in place of a LayerScale whose factors the linear layer before it has taken up."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {}


@REPLACEMENTS.register("skipped")
class Skipped(Replacement):
    """Return the stream as it is, whatever else the block was given."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {}

    def forward(self, x: Tensor, *others: Any, **more: Any) -> Tensor:
        return x
