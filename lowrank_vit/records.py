"""The plain records that pass from stage to stage. Tensors are float64 unless said otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Site:
    """A linear layer that is to be compressed: ``y = x W + b`` with ``W: (in_features, out_features)``."""

    name: str
    in_features: int
    out_features: int
    bias: bool
    heads: int = 0  # of a layer that makes queries, keys and values: how many heads they are for

    @property
    def parameters(self) -> int:
        """Parameters of the weight; the bias is not compressed."""
        return self.in_features * self.out_features

    @property
    def full_rank(self) -> int:
        """The largest rank that the weight can have."""
        return min(self.in_features, self.out_features)

    @property
    def side(self) -> str:
        """Where a second moment is the smaller one: ``"input"`` (n, n) or ``"output"`` (d, d)."""
        return "input" if self.in_features <= self.out_features else "output"


@dataclass(frozen=True)
class Moments:
    """Sums over the calibration set of one layer's statistics; merging two sets is adding them.

    ``sums`` holds, as far as they were asked for (x: input of a token, y = x W without bias, g: gradient of the loss
    with respect to the output, X_i: all tokens of image i):

    =========================  ==========  ==============================================
    ``input_sum``              (n,)        sum of x
    ``input_second``           (n, n)      sum of x x^T
    ``output_second``          (d, d)      sum of y y^T
    ``normalised_*``           as above    the same with image i weighted by 1 / ||X_i W||_F^2
    ``normalised_weight``      ()          sum of the weights of all tokens
    ``input_abs``              (n,)        sum of |x|
    ``representative``         (t, n)      sum of X over images (over windows, in a Swin block)
    ``representative_count``   ()          how many were summed
    ``gradient_second``        (d, d)      sum of g g^T
    ``fisher_rows``            (n,)        sum over images of the row sums of the squared weight gradient
    ``sensitive_second``       (n, n)      sum of ||g||^2 x x^T: tokens count as much as the loss listens to them
    ``sensitive_input_sum``    (n,)        sum of ||g||^2 x
    ``sensitive_weight``       ()          sum of ||g||^2
    ``sensitive_tokens``       (t,)        sum of ||g||^2 over images, for each position of an image
    ``head_fisher_query``      (h, s, s)   sum over images of D D^T, D the gradient of B in ``logit = q^T B k / sqrt(s)``
    ``head_fisher_key``        (h, s, s)   sum over images of D^T D; both by ``"head_fisher"``, at a layer with heads
    =========================  ==========  ==============================================
    """

    images: int
    tokens: int
    sums: Mapping[str, Tensor]

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets together."""
        if self.sums.keys() != other.sums.keys():
            raise ValueError("moments of different statistics cannot be merged")
        sums = {name: total + other.sums[name] for name, total in self.sums.items()}
        return Moments(self.images + other.images, self.tokens + other.tokens, sums)

    def has(self, name: str) -> bool:
        """Whether the statistic was collected."""
        return name in self.sums

    def mean(self, name: str) -> Tensor:
        """The average that belongs to a sum: over tokens, over weighted tokens, or over images.

        Moments of gradients are averaged over images, so that they speak of the loss of an image.
        """
        if name.startswith("normalised_"):
            return self.sums[name] / self.sums["normalised_weight"]
        if name.startswith("sensitive_"):
            return self.sums[name] / self.sums["sensitive_weight"].clamp_min(torch.finfo(torch.float64).tiny)
        if name == "representative":
            return self.sums[name] / self.sums["representative_count"]
        return self.sums[name] / (self.images if "gradient" in name or "fisher" in name else self.tokens)


@dataclass(frozen=True)
class Factors:
    """All directions of a decomposition ``W ~ U V^T``, most important first: rank r keeps the first r columns."""

    u: Tensor  # shape: (n, k)
    v: Tensor  # shape: (d, k)
    loss: Tensor  # shape: (k + 1,); what the decomposition's own objective loses at rank 0 ... k
    ridge: float = 0.0  # relative to the mean eigenvalue of the statistic that needed it
    cap: int | None = None  # the rank above which no direction helps, where the statistics cap it

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """``U, V`` of the first ``rank`` directions, the same in memory however many follow."""
        return self.u[:, :rank].contiguous(), self.v[:, :rank].contiguous()


@dataclass(frozen=True)
class ErrorCurve:
    """What every choice for one layer costs (parameters) and loses: ranks 0 ... k, or dense.

    ``errors[r]`` is the loss at rank r; the dense choice loses nothing and costs ``dense_cost``; rank r costs
    ``fixed_cost + r * rank_cost`` (``fixed_cost``: parameters of Z, a bias that has to be added).
    """

    name: str
    errors: Tensor  # shape: (k + 1,)
    rank_cost: int
    dense_cost: int
    fixed_cost: int = 0
    multiple: int = 1
    full_rank: int | None = None  # of the weight, where the curve ends before it because the statistics cap the rank

    def cost(self, rank: int | None) -> int:
        """Parameters at ``rank``; ``None`` is dense."""
        return self.dense_cost if rank is None else self.fixed_cost + rank * self.rank_cost

    def error(self, rank: int | None) -> float:
        """Loss at ``rank``; ``None`` is dense. Beyond the last direction nothing more is gained."""
        return 0.0 if rank is None else self._values[min(rank, len(self._values) - 1)]

    @cached_property
    def _values(self) -> list[float]:
        """The errors as plain numbers: allocators ask for tens of thousands of them."""
        found: list[float] = self.errors.tolist()
        return found

    @property
    def ranks(self) -> range:
        """The ranks worth considering: multiples of ``multiple``, at least one, cheaper than dense, within the curve."""
        largest = min((self.dense_cost - self.fixed_cost - 1) // self.rank_cost, len(self.errors) - 1)
        smallest = min(self.multiple, largest)
        return range(smallest, largest + 1, self.multiple) if largest >= 1 else range(0)


@dataclass(frozen=True)
class RankPlan:
    """The rank of every layer (``None``: stays dense), and the steps that led there where an allocator records them.

    ``measured``: predicted and measured losses of parts, where the plan was corrected by them.
    """

    ranks: Mapping[str, int | None]
    trajectory: tuple[Mapping[str, float | int | str], ...] = ()
    measured: tuple[Mapping[str, float | int | str], ...] = ()


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer; ``relative_error`` is ``E||y - y^||^2 / E||x W||^2``."""

    name: str
    in_features: int
    out_features: int
    rank: int | None
    z: Mapping[str, float | str] | None
    params: int
    relative_error: float
    relative_error_held_out: float | None
    details: Mapping[str, float | int | None] = field(default_factory=dict)


def as_float64(tensor: Tensor) -> Tensor:
    """The tensor in the precision of all statistics and factorisations."""
    return tensor.detach().to(torch.float64)
