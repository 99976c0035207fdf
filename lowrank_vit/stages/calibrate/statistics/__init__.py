"""The statistics that calibration can collect, one file each.

A statistic is a frozen class, registered under the name that a method's ``needs`` lists. It adds its sums for a batch, in
float64, to the layer's accumulator. The sum ``KIND_weight`` beside sums ``KIND_...`` is what ``Moments.mean`` divides by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor, nn

from lowrank_vit.records.sites import Site
from lowrank_vit.runtime.registry import Registry

Product = TypeVar("Product")


@dataclass
class Batch:
    """Hold the current batch: its number of images, and the products of the last input, for the layers that share it."""

    images: int = 0
    last_input: Tensor | None = None
    products: dict[str, Any] = field(default_factory=dict)

    def forget(self) -> None:
        """Drop the input: its graph refers to hooks that hold this batch, a cycle that the garbage collector cannot find."""
        self.last_input, self.products = None, {}

    def product(self, name: str, x: Tensor, compute: Callable[[], Product]) -> Product:
        """Return a product of the input ``x``, computed once where consecutive layers share it."""
        if x is not self.last_input:
            self.last_input, self.products = x, {}
        if name not in self.products:
            self.products[name] = compute()
        product: Product = self.products[name]
        return product


@dataclass
class Seen:
    """Hold the inputs and outputs of one layer in a batch; windows of one image are adjacent."""

    site: Site
    batch: Batch
    x: Tensor  # shape: (..., n)
    output: Tensor  # shape: (..., d)
    bias: Tensor | float  # added by the layer
    later_bias: Tensor | float = 0.0  # added to the output by the module around the layer
    gradient: Tensor | None = None  # shape: (..., d), of the summed loss of the batch
    weight: Tensor | None = None  # shape: (d, n), as the layer has it
    owner: nn.Module | None = None  # the module around the layer

    @property
    def images(self) -> int:
        return self.batch.images

    @cached_property
    def rows(self) -> Tensor:
        """Return the input token by token, (tokens, n), float32."""
        return self.x.detach().flatten(0, -2).float()

    @cached_property
    def by_image(self) -> Tensor:
        """Return the input image by image, (images, tokens of each, n), float32."""
        return self.x.detach().float().reshape(self.images, -1, self.x.shape[-1])

    @cached_property
    def products(self) -> Tensor:
        """Return ``x W``, the output without its bias, (tokens, d), float32."""
        return self.output.detach().flatten(0, -2).float() - self.bias

    @cached_property
    def slopes(self) -> Tensor:
        """Return the gradient image by image, (images, tokens of each, d), float32."""
        assert self.gradient is not None
        return self.gradient.float().reshape(self.images, -1, self.gradient.shape[-1])

    def shared(self, name: str, compute: Callable[[], Product]) -> Product:
        """Return a product of the input, computed once for all layers with the same input."""
        return self.batch.product(name, self.x, compute)


class Sums(Protocol):
    """Define the interface of what collects a statistic's sums."""

    def add(self, name: str, value: Tensor) -> None:
        """Add to a sum."""

    def add_second(self, name: str, panels: list[Tensor]) -> None:
        """Add the panels of a second moment."""


class Statistic(Protocol):
    """Define the interface of a statistic."""

    gradient: ClassVar[bool]  # whether it needs the backward pass

    def __call__(self, seen: Seen, sums: Sums) -> None:
        """Add the sums of a batch."""


STATISTICS: Registry[type[Statistic]] = Registry("statistic", __name__)
