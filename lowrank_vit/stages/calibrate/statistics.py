"""The statistics that calibration can collect.

A statistic is a function, registered under the name that a method's ``needs`` lists. It adds its sums for a batch, in
float64, to the layer's accumulator. The sum ``KIND_weight`` beside sums ``KIND_...`` is what ``Moments.mean`` divides by.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lowrank_vit.linalg.metric import gram_panels, weighted_sum
from lowrank_vit.modules.scans import SS2D
from lowrank_vit.records.sites import Site
from lowrank_vit.runtime.registry import Registry

Product = TypeVar("Product")
Add = TypeVar("Add", bound="Callable[[Seen, Sums], None]")


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
        return self.products[name]


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


@dataclass(frozen=True)
class Statistic:
    """Hold the function that adds the sums of a batch; ``gradient``: whether it needs the backward pass."""

    add: Callable[[Seen, Sums], None]
    gradient: bool = False


STATISTICS: Registry[Statistic] = Registry("statistic")


def statistic(name: str, *, gradient: bool = False) -> Callable[[Add], Add]:
    """Return a decorator that registers a function as the statistic ``name``."""

    def register(add: Add) -> Add:
        STATISTICS.add(name, Statistic(add, gradient))
        return add

    return register


@statistic("input_second")
def input_second(seen: Seen, sums: Sums) -> None:
    """Collect ``input_second``, (n, n): the sum of ``x x^T`` over tokens."""
    sums.add_second("input_second", seen.shared("second", lambda: gram_panels(seen.rows)))


@statistic("output_second")
def output_second(seen: Seen, sums: Sums) -> None:
    """Collect ``output_second``, (d, d): the sum of ``y y^T`` over tokens, y without the bias."""
    sums.add_second("output_second", gram_panels(seen.products))


@statistic("input_abs")
def input_abs(seen: Seen, sums: Sums) -> None:
    """Collect ``input_abs``, (n,): the sum of ``|x|`` over tokens."""
    sums.add("input_abs", seen.shared("abs", lambda: seen.rows.abs().sum(0)))


@statistic("representative")
def representative(seen: Seen, sums: Sums) -> None:
    """Collect ``representative``, (t, n): the paper's input, the sum over images of X, all tokens of one; and its windows."""
    sums.add("representative", seen.shared("representative", lambda: seen.by_image.sum(0)))
    sums.add("representative_windows", torch.tensor(float(len(seen.x)), device=seen.x.device))


def _weights(seen: Seen, sums: Sums) -> Tensor:
    """Return each token's weight, (tokens,), ``1 / ||X_i W||_F^2`` as in the paper's (3) and (5), and add its sums."""
    energy = seen.products.reshape(seen.images, -1).square().sum(1).clamp_min(torch.finfo(seen.products.dtype).tiny)
    weights = energy.reciprocal().repeat_interleave(len(seen.rows) // seen.images)
    sums.add("normalised_weight", weights.sum())
    sums.add("normalised_input_sum", weighted_sum(seen.rows, weights))
    return weights


@statistic("normalised_input_second")
def normalised_input_second(seen: Seen, sums: Sums) -> None:
    """Collect ``normalised_input_second``, (n, n): the weighted sum of ``x x^T``."""
    sums.add_second("normalised_input_second", gram_panels(seen.rows, _weights(seen, sums)))


@statistic("normalised_output_second")
def normalised_output_second(seen: Seen, sums: Sums) -> None:
    """Collect ``normalised_output_second``, (d, d): the weighted sum of ``y y^T``. Never collected beside the input's."""
    sums.add_second("normalised_output_second", gram_panels(seen.products, _weights(seen, sums)))


@statistic("scan_change")
def scan_change(seen: Seen, sums: Sums) -> None:
    """Collect ``scan_change``, (D, D): the sum of ``e e^T``, e the change of the output layer's inputs without the scan.

    Collected at the mixer's first layer. ``scan_whole``, (D, D): the same of the inputs with the scan.
    Raises ``TypeError`` at a layer that is in no mixer.
    """
    mixer = seen.owner
    if not isinstance(mixer, SS2D):
        raise TypeError(f"{seen.site.name!r} is no layer of a mixer with a scan")
    u, gate = mixer.read(seen.output.detach())
    whole = mixer.written(mixer.scan(u)[0], gate)
    change = whole - mixer.written(mixer.whole_scan.skipped(u), gate)
    for name, value in (("scan_change", change), ("scan_whole", whole)):
        sums.add_second(name, gram_panels(value.flatten(0, -2).float()))


@statistic("gradient_second", gradient=True)
def gradient_second(seen: Seen, sums: Sums) -> None:
    """Collect ``gradient_second``, (d, d): the sum of ``g g^T`` over tokens, a Kronecker factor of the Fisher information."""
    sums.add_second("gradient_second", gram_panels(seen.slopes.flatten(0, 1)))


@statistic("sensitive_second", gradient=True)
def sensitive_second(seen: Seen, sums: Sums) -> None:
    """Collect ``sensitive_second``, (n, n): the sum of ``||g||^2 x x^T``, with ``sensitive_{input_sum,weight,tokens}``."""
    weights = seen.slopes.flatten(0, 1).square().sum(1)
    sums.add("sensitive_weight", weights.sum())
    sums.add("sensitive_tokens", weights.view(seen.images, -1).sum(0))
    sums.add("sensitive_input_sum", weighted_sum(seen.rows, weights))
    sums.add_second("sensitive_second", gram_panels(seen.rows, weights))


@statistic("fisher_rows", gradient=True)
def fisher_rows(seen: Seen, sums: Sums) -> None:
    """Collect ``fisher_rows``, (n,): the sum over images of the row sums of the squared weight gradient.

    Row i of an image's weight gradient is ``X[:, i]^T g``, so its norm needs no (n, d) matrix.
    """
    slopes, inputs = seen.slopes, seen.by_image
    sums.add("fisher_rows", (((slopes @ slopes.mT) @ inputs) * inputs).sum((0, 1)))


@statistic("gradient_rows", gradient=True)
def gradient_rows(seen: Seen, sums: Sums) -> None:
    """Collect ``gradient_rows``, (t, t): the sum over images of ``G G^T``, G: (t, d) an image's gradient at all positions."""
    sums.add("gradient_rows", (seen.slopes @ seen.slopes.mT).sum(0))


@statistic("gradient_abs", gradient=True)
def gradient_abs(seen: Seen, sums: Sums) -> None:
    """Collect ``gradient_abs``, (n, d): the sum over images of ``|X^T G|``, the weight's gradient by an image's loss.

    Image by image, so that no more than one (n, d) matrix is made at a time.
    """
    total = torch.zeros(seen.site.in_features, seen.site.out_features, device=seen.x.device)
    for x, slopes in zip(seen.by_image, seen.slopes, strict=True):
        total += (x.T @ slopes).abs()
    sums.add("gradient_abs", total)


@statistic("gate_fisher", gradient=True)
def gate_fisher(seen: Seen, sums: Sums) -> None:
    """Collect ``gate_fisher``, (n, n): the sum over images of ``s s^T``, ``s_j = dL/da_j`` at a = 1 for inputs ``a_j x_j``.

    ``s_j = sum_t x_tj (g_t W^T)_j`` over the tokens of an image. Summed over the inputs that one head makes, it is the sum
    of ``A * dL/dA`` over that head's attention A, as ``sum_k A_qk dL/dA_qk`` is the output of query q times its gradient.
    """
    assert seen.weight is not None
    slopes = (seen.by_image * (seen.slopes @ seen.weight)).sum(1)
    sums.add("gate_fisher", slopes.T @ slopes)


@statistic("head_fisher", gradient=True)
def head_fisher(seen: Seen, sums: Sums) -> None:
    """Collect ``head_fisher_query`` and ``head_fisher_key``, (h, s, s): from the queries and their gradient only.

    ``D = sum_q q (dL/dq)^T = sum_qk (dL/dlogit_qk) q k^T / sqrt(s)`` is the gradient of an image's loss with respect
    to B in ``logit = q^T B k / sqrt(s)``, whatever windows, masks and position biases there are. The sums over images
    are of ``D D^T`` and ``D^T D``. Collected only at a layer with heads. Where that makes keys and values alone, keys
    take the place of the queries: ``D^T = sum_k k (dL/dk)^T``, and both sums change their names.
    """
    output = seen.output.detach().float() + seen.later_bias
    output = output.reshape(seen.images, -1, output.shape[-1])
    heads, width = seen.site.heads, output.shape[-1] // seen.site.parts
    queries, slopes = (t[..., :width].unflatten(-1, (heads, -1)).transpose(1, 2) for t in (output, seen.slopes))
    slope = queries.mT @ slopes  # (images, heads, s, s)
    sums.add("head_fisher_query", (slope @ slope.mT).sum(0))
    sums.add("head_fisher_key", (slope.mT @ slope).sum(0))
