"""Costs that are counted: parameters, multiply-accumulates, bytes on disk."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import nn

from lowrank_vit.compression.prices import PRICES, Price
from lowrank_vit.modules.counting import model_size, parameter_count, saved_bytes
from lowrank_vit.records.costs import PARAMETERS
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.units.base import Unit


@PRICES.register(PARAMETERS)
@dataclass(frozen=True)
class Parameters(Price):
    """Count parameters, whose prices are exact."""

    by_token: ClassVar[bool] = False

    @cached_property
    def dense(self) -> int:
        return parameter_count(self.model)


@PRICES.register("macs")
@dataclass(frozen=True)
class Macs(Price):
    """Count the multiply-accumulates of an image.

    Heads of unequal widths run padded to one width, which no unit's price knows.
    """

    corrections: ClassVar[float] = math.inf

    @cached_property
    def dense(self) -> int:
        return self.count(self.model)

    def count(self, small: nn.Module) -> int:
        """Count on a forward pass. Raises ``InputError`` where the size of the images is not known."""
        macs = model_size(small)[1]
        if macs is None:
            raise InputError(
                "the model does not say what images it takes, so multiply-accumulates and times cannot be its budget: give "
                "params or bytes"
            )
        return macs


@PRICES.register("bytes")
@dataclass(frozen=True)
class Bytes(Price):
    """Count the bytes of ``model.safetensors``: parameters and buffers in the model's own type, and a header naming them."""

    by_token: ClassVar[bool] = False
    knows_z: ClassVar[bool] = False
    corrections: ClassVar[float] = math.inf

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.setting.dtype)

    @cached_property
    def dense(self) -> int:
        return self.count(self.model)

    def priced(self, curves: Sequence[ErrorCurve], decomposed: Sequence[Unit] = ()) -> list[ErrorCurve]:
        width = self.dtype.itemsize
        return [
            replace(
                curve,
                unit=curve.unit * width,
                dense=curve.dense * width,
                fixed=curve.fixed * width,
                saved=tuple(parameters * width for parameters in curve.saved),
            )
            for curve in curves
        ]

    def count(self, small: nn.Module) -> int:
        return saved_bytes(small, self.dtype)
