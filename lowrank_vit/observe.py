"""The running sums of one layer while images stream by: what calibration's hooks feed.

Products are taken in float32 batch by batch and added up in float64, so memory does not depend on the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from lowrank_vit.errors import InputError
from lowrank_vit.gram import assembled, gram_panels, weighted_sum
from lowrank_vit.records import Moments, Site

Product = TypeVar("Product")
STATISTICS = frozenset(
    {
        "second",  # of the smaller side
        "input_second",
        "output_second",
        "normalised_second",
        "normalised_input_second",
        "input_abs",
        "representative",
        "gradient_second",
        "fisher_rows",
        "sensitive_second",
        "head_fisher",
    }
)
NEED_GRADIENT = frozenset({"gradient_second", "fisher_rows", "sensitive_second", "head_fisher"})


def resolve(needs: Iterable[str], site: Site) -> frozenset[str]:
    """The sums to collect at a site: ``"second"`` becomes the smaller side's, unless the input's is needed anyway.

    ``"head_fisher"`` is left out at a site without heads.
    """
    wanted = set(needs)
    if not wanted <= STATISTICS:
        raise ValueError(f"unknown statistics {sorted(wanted - STATISTICS)}")
    for prefix in ("", "normalised_"):
        if f"{prefix}second" in wanted:
            wanted.remove(f"{prefix}second")
            if f"{prefix}input_second" not in wanted:
                wanted.add(f"{prefix}{site.side}_second")
    if not site.heads:
        wanted.discard("head_fisher")
    return frozenset(wanted)


@dataclass
class Batch:
    """The batch under way: its images, and the products of the last input, so that layers which share it share them."""

    images: int = 0
    last_input: Tensor | None = None
    products: dict[str, Any] = field(default_factory=dict)

    def forget(self) -> None:
        """Let go of the input, whose graph leads to hooks that hold this batch: no collector would find that circle."""
        self.last_input, self.products = None, {}

    def product(self, name: str, x: Tensor, compute: Callable[[], Product]) -> Product:
        """A product of the input ``x``, computed once where consecutive layers share it."""
        if x is not self.last_input:
            self.last_input, self.products = x, {}
        if name not in self.products:
            self.products[name] = compute()
        found: Product = self.products[name]
        return found


@dataclass
class Accumulator:
    """The running sums of one layer."""

    site: Site
    bias: Tensor | float
    wanted: frozenset[str]
    batch: Batch
    images: int = 0
    tokens: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, list[Tensor]] = field(default_factory=dict)  # second moments, by panels

    def add(self, name: str, value: Tensor) -> None:
        """Add to a sum, in float64."""
        if name in self.sums:
            self.sums[name] += value
        else:
            self.sums[name] = value.to(torch.float64, copy=True)  # layers that share an input are handed one tensor

    def add_second(self, name: str, panels: Sequence[Tensor]) -> None:
        """Add the panels of a second moment, in float64."""
        if name not in self.seconds:
            self.seconds[name] = [panel.to(torch.float64, copy=True) for panel in panels]
            return
        for total, panel in zip(self.seconds[name], panels, strict=True):
            total += panel

    def see_input(self, x: Tensor, output: Tensor) -> None:
        """x: (..., n), output: (..., d) of the layer for the batch; windows of one image are neighbours.

        Raises ``InputError`` for rows that cannot be those of the batch's images, as coordinates are.
        """
        rows = x.detach().flatten(0, -2).float()
        if len(rows) % self.batch.images:
            raise InputError(
                f"layer {self.site.name!r} is given {len(rows)} rows for {self.batch.images} images, so it does not look "
                "at images one by one: leave it out by --sites"
            )
        self.images, self.tokens = self.images + self.batch.images, self.tokens + len(rows)
        self.add("input_sum", self.batch.product("sum", x, lambda: rows.sum(0)))
        if "input_second" in self.wanted:
            self.add_second("input_second", self.batch.product("second", x, lambda: gram_panels(rows)))
        if "input_abs" in self.wanted:
            self.add("input_abs", self.batch.product("abs", x, lambda: rows.abs().sum(0)))
        if "representative" in self.wanted:
            grid = x.detach().float().reshape(len(x), -1, x.shape[-1])
            self.add("representative", self.batch.product("representative", x, lambda: grid.sum(0)))
            self.add("representative_count", torch.tensor(float(len(grid)), device=x.device))
        if self.wanted & {"output_second", "normalised_output_second", "normalised_input_second"}:
            self._see_output(rows, output.detach().flatten(0, -2).float() - self.bias)

    def _see_output(self, rows: Tensor, output: Tensor) -> None:
        images = self.batch.images
        if "output_second" in self.wanted:
            self.add_second("output_second", gram_panels(output))
        if self.wanted & {"normalised_output_second", "normalised_input_second"}:
            energy = output.reshape(images, -1).square().sum(1).clamp_min(torch.finfo(output.dtype).tiny)
            weights = energy.reciprocal().repeat_interleave(len(rows) // images)
            self.add("normalised_weight", weights.sum())
            self.add("normalised_input_sum", weighted_sum(rows, weights))
            for name, x in (("normalised_input_second", rows), ("normalised_output_second", output)):
                if name in self.wanted:
                    self.add_second(name, gram_panels(x, weights))

    def see_gradient(self, x: Tensor, output: Tensor, gradient: Tensor) -> None:
        """gradient: (..., d), of the summed loss of a batch with respect to the layer's output."""
        images = self.batch.images
        g = gradient.float().reshape(images, -1, gradient.shape[-1])
        if "gradient_second" in self.wanted:
            self.add_second("gradient_second", gram_panels(g.flatten(0, 1)))
        if "sensitive_second" in self.wanted:
            rows, weights = x.detach().float().flatten(0, -2), g.flatten(0, 1).square().sum(1)
            self.add("sensitive_weight", weights.sum())
            self.add("sensitive_tokens", weights.view(images, -1).sum(0))
            self.add("sensitive_input_sum", weighted_sum(rows, weights))
            self.add_second("sensitive_second", gram_panels(rows, weights))
        if "fisher_rows" in self.wanted:
            # row i of an image's weight gradient is X[:, i]^T g, so its squared norm needs no (n, d) matrix
            inputs = x.detach().float().reshape(images, -1, x.shape[-1])
            self.add("fisher_rows", (((g @ g.mT) @ inputs) * inputs).sum((0, 1)))
        if "head_fisher" in self.wanted:
            self._see_heads(output.detach().float().reshape(images, -1, output.shape[-1]), g)

    def _see_heads(self, output: Tensor, gradient: Tensor) -> None:
        """The logits' Fisher of every head, from the queries and their gradient alone; both (images, tokens, 3 A).

        ``D = sum_q q (dL/dq)^T = sum_qk (dL/dlogit_qk) q k^T / sqrt(s)`` is the gradient of an image's loss with respect
        to B in ``logit = q^T B k / sqrt(s)``, whatever windows, masks and position biases there are.
        """
        heads, width = self.site.heads, output.shape[-1] // 3
        queries, slopes = (t[..., :width].unflatten(-1, (heads, -1)).transpose(1, 2) for t in (output, gradient))
        slope = queries.mT @ slopes  # (images, heads, s, s)
        self.add("head_fisher_query", (slope @ slope.mT).sum(0))
        self.add("head_fisher_key", (slope.mT @ slope).sum(0))

    def moments(self) -> Moments:
        """What has been seen so far."""
        seconds = {name: assembled(panels) for name, panels in self.seconds.items()}
        return Moments(self.images, self.tokens, self.sums | seconds)
