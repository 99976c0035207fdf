"""LoSparse: a low-rank part of each layer, and rows beside it, of which fewer and fewer stay (Li et al. 2023)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.factors import Directions, SplitRows, check_share, split_rank
from lowrank_vit.records.looks import look
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import ROW
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.allocate.rules import EqualError
from lowrank_vit.stages.decompose import ROWS, learnt_scores, project_output
from lowrank_vit.stages.gates import GRADUAL, GradualMethod, Progress
from lowrank_vit.stages.gates.expected import Prices
from lowrank_vit.stages.gates.gates import Gate, GatedLayer, Place, RowGate

ROUNDING = 1e-4  # of the weight's norm: what rows without S may have beside the low-rank part


@ROWS.register("platon")
@dataclass(frozen=True)
class PlatonRows:
    """Truncate the SVD of W; of ``S = W - U V^T`` keep the rows of largest mean ``|S dL/dW|`` (LoSparse, Li et al. 2023).

    The slopes are those of the dense model, image by image, where LoSparse has running means over a training, and their
    uncertainty. ``share``: of the layer's parameters, for U and V; LoSparse's 5 %.
    Raises ``InputError`` for a share out of range.
    """

    share: float = 0.05

    needs: ClassVar[frozenset[str]] = frozenset({"gradient_abs"})

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, weight: Tensor, rank: int, moments: Moments) -> SplitRows:
        u, v = project_output(weight, weight).cut(rank)
        scores = ((weight - u @ v.T).abs() * moments.mean("gradient_abs")).mean(0)
        return SplitRows(u, v, Directions.by_score(scores))


@ROWS.register("learnt")
@dataclass(frozen=True)
class LearntRows:
    """Keep the rows that training has kept; the other rows are left to the low-rank part alone.

    Rows of W whose score is below 1 are rows of ``U V^T``, so that their singular vectors give it back, to rounding. Kept
    rows are what they are, however they are split; a smaller budget leaves the last of them to their low-rank part.
    Raises ``InputError`` where the others have a higher rank: they were trained with another ``share``.
    """

    share: float = 0.05

    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, weight: Tensor, rank: int, moments: Moments) -> SplitRows:
        scores = learnt_scores(moments, "learnt_outputs")
        others = scores < 1
        low = weight[:, others] if others.any() else weight
        u = torch.linalg.svd(low, full_matrices=low.shape[1] < rank)[0][:, :rank]
        v = (u.T @ weight).T
        if others.any() and torch.dist(low, u @ v[others].T) > ROUNDING * weight.norm():
            raise InputError(
                f"rows were learnt beside a low-rank part of another share than {self.share:g}: "
                "give rows.share and gradual.share the same value"
            )
        return SplitRows(u, v, Directions.by_score(scores))


class SparseGate(RowGate):
    """Split a weight as ``W = U V^T + S``: hold the factors, and the importance of S.

    So that the function stays as it was bit by bit, S is not stored: it is the weight less ``start``, the first ``U V^T``.
    """

    down_start: Tensor
    up_start: Tensor
    recent: Tensor  # shape: (d, n), as the next two; the sum of |S dL/dS| since they were last brought up to date
    mean: Tensor  # the running mean of that
    spread: Tensor  # the running mean of how far it is from there
    worth: Tensor  # shape: (d,); the place of each row among those of all layers, 0 the least, below 1

    def __init__(self, place: Place, share: float) -> None:
        super().__init__(place)
        self.share = share

    def split(self, weight: Tensor) -> None:
        """Take the factors of the best approximation of ``weight``, (d, n), the square roots of singular values in both."""
        d, n = weight.shape
        left, values, right = torch.linalg.svd(weight.detach().double(), full_matrices=False)
        rank, roots = split_rank(n, d, self.share), values.sqrt()
        self.up = nn.Parameter((left * roots)[:, :rank].to(weight))
        self.down = nn.Parameter((roots[:, None] * right)[:rank].to(weight))
        self.register_buffer("up_start", self.up.detach().clone())
        self.register_buffer("down_start", self.down.detach().clone())
        for name in ("recent", "mean", "spread"):
            self.register_buffer(name, torch.zeros_like(weight, requires_grad=False))
        self.register_buffer("worth", torch.zeros(d, device=weight.device))

    @property
    def start(self) -> Tensor:
        """Return the first ``U V^T``, (d, n)."""
        return self.up_start @ self.down_start

    def joined(self, weight: Tensor) -> Tensor:
        """Return ``U V^T + S``, (d, n)."""
        return weight + (self.up @ self.down - self.start)

    def scores(self) -> Tensor:
        """Return scores, (d,), of which those of kept rows are at least 1, and those of others below."""
        return self.mask + self.worth

    @torch.no_grad()
    def watch(self, weight: Tensor, slope: Tensor, last: bool, interval: int, betas: tuple[float, float]) -> None:
        """Add ``|S dL/dS|`` of a step; on the ``last`` of an interval bring the running means up to date."""
        self.recent += ((weight - self.start) * slope).abs()
        if last:
            now = self.recent / interval
            self.mean.lerp_(now, 1 - betas[0])
            self.spread.lerp_((now - self.mean).abs(), 1 - betas[1])
            self.recent.zero_()

    def importance(self) -> Tensor:
        """Return the mean of each row's importance times its uncertainty, (d,), float64."""
        return (self.mean.double() * self.spread.double()).mean(1)


def kept_share(step: int, first: int, last: int, end: float) -> float:
    """Return the share of all rows that stays after a step: 1 up to ``first``, ``end`` from ``last`` on, a cubic between.

    >>> kept_share(0, 0, 8, 0.5), kept_share(4, 0, 8, 0.5), kept_share(8, 0, 8, 0.5)
    (1.0, 0.5625, 0.5)
    """
    way = min(max((step - first) / max(last - first, 1), 0.0), 1.0)
    return end + (1 - end) * (1 - way) ** 3


def best_rows(scores: Sequence[Tensor], widths: Sequence[int], room: float) -> tuple[list[Tensor], list[Tensor]]:
    """Keep the best rows of all layers whose entries fit into ``room``, and the best one of each layer in any case.

    scores: (d,) of each layer, whose rows have ``widths`` entries. Returns masks, and places from 0 to below 1, (d,) each.
    """
    counts = [len(each) for each in scores]
    first = torch.cat([torch.arange(len(each), device=each.device) == each.argmax() for each in scores])
    entries = torch.cat([torch.full((len(each),), width) for each, width in zip(scores, widths, strict=True)])
    order = torch.cat(list(scores)).masked_fill(first, math.inf).argsort(descending=True, stable=True)
    fits = entries.to(order.device)[order].cumsum(0) <= room
    mask, place = torch.zeros_like(first), torch.zeros(len(order), device=order.device, dtype=torch.float64)
    mask[order] = fits | first[order]
    place[order] = torch.arange(len(order) - 1, -1, -1, device=order.device, dtype=torch.float64) / len(order)
    return list(mask.split(counts)), list(place.split(counts))


@GRADUAL.register("sparse_rows")
@dataclass(frozen=True)
class SparseRows(GradualMethod):
    """Train U, V and S of ``W = U V^T + S``, with fewer and fewer rows in S (LoSparse, Li et al. 2023).

    U and V, of ``share`` of each layer's parameters, begin with the SVD, S with all that is left. Rows are scored by the mean
    of their entries' ``I U`` (PLATON): I the running mean of ``|S dL/dS|``, averaged over ``interval`` steps, U that of its
    changes, by ``betas``. One threshold keeps the best rows of all layers; others of S are set to zero, every ``interval``
    steps, and may grow again in between. The share that stays is 1 up to the share ``first`` of the steps, falls by a cubic,
    and from ``last`` on is what the budget leaves; from then on rows are set to zero after every step. A threshold counts
    entries: theirs counts those of repeated scores. Weight decay does not act on U and V.
    Raises ``InputError`` for numbers out of range.
    """

    share: float = 0.05
    interval: int = 10
    first: float = 0.05
    last: float = 0.7
    betas: tuple[float, float] = (0.85, 0.95)

    units: ClassVar[tuple[str, ...]] = (ROW,)
    alone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share(self.share)
        if self.interval < 1 or not 0 <= self.first <= self.last <= 1 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"{self}: interval from 1 on; first, last from 0 to 1, in order; betas from 0 to below 1")

    def gate(self, place: Place) -> Gate:
        return SparseGate(place, self.share)

    def groups(self, gates: Mapping[str, Gate], lr: float) -> list[dict[str, Any]]:
        """Return the factors, trained as the weights are, without decay."""
        factors = [each for gate in gates.values() for each in gate.parameters()]
        return [{"params": factors, "lr": lr, "weight_decay": 0.0}]

    def begin(self, gates: Mapping[str, Gate], prices: Prices, target: float, seed: int) -> None:
        """Leave all rows open. Raises ``InputError`` where the budget has no room for a row of each layer."""
        own = [gate for gate in gates.values() if isinstance(gate, SparseGate)]
        least = sum(gate.mean.shape[1] for gate in own)
        if row_room(own, prices, target) < least:
            raise InputError(
                f"a target of {target:g} of the parameters leaves no row beside the low-rank parts: ask for more, or give "
                f"gradual.share and rows.share less than {self.share:g}"
            )

    def before_step(self, layers: Sequence[GatedLayer], progress: Progress) -> None:
        last = (progress.step + 1) % self.interval == 0
        for layer in layers:
            assert isinstance(layer.rows, SparseGate)
            weight = layer.layer.weight
            layer.rows.watch(weight, weight.grad, last, self.interval, self.betas)

    @torch.no_grad()
    def after_step(self, layers: Sequence[GatedLayer], progress: Progress) -> None:
        first, last = (int(share * progress.steps) for share in (self.first, self.last))
        if progress.step < last and (progress.step <= first or progress.step % self.interval):
            return
        own = [layer.rows for layer in layers if isinstance(layer.rows, SparseGate)]
        entries = sum(gate.mean.numel() for gate in own)
        end = min(1.0, row_room(own, progress.prices, progress.target) / entries)
        room = entries * kept_share(progress.step, first, last, end)
        masks, worths = best_rows([gate.importance() for gate in own], [gate.mean.shape[1] for gate in own], room)
        for layer, gate, mask, worth in zip(layers, own, masks, worths, strict=True):
            gate.mask.copy_(mask)
            gate.worth.copy_(worth)
            layer.layer.weight.data[~mask] = gate.start[~mask]


def row_room(gates: Sequence[SparseGate], prices: Prices, target: float) -> float:
    """Return how many entries of S a target leaves, beside the low-rank parts and what has no gates."""
    low_rank = sum(gate.up.numel() + gate.down.numel() for gate in gates)
    dense = sum(gate.mean.numel() for gate in gates)
    return target * prices.whole.parameters - (prices.whole.parameters - dense) - low_rank


add_recipe(
    "losparse0",
    units={"rows": PlatonRows()},
    allocator=EqualError(),
    bias_correction=True,
    objective=Classification(sampling="signs"),
    about="plain SVD at one small rank, and rows beside it by one threshold on their slopes: LoSparse, untrained",
)


add_recipe(
    "losparse",
    units={"rows": LearntRows()},
    allocator=EqualError(),
    gradual=SparseRows(),
    labelled=True,
    about="a low-rank part and rows beside it, both trained on labelled images while rows go (LoSparse, Li et al.)",
)


look(
    "losparse0", "h", (2, 3), "grey", "LoSparse's start",
    "rows by slopes of the dense model, no training; biases take up means",
)  # fmt: skip


look(
    "losparse", "h", (), "blue", "LoSparse",
    "5% for the low-rank part; the schedule's shares are ours; half of the epochs while rows go",
)  # fmt: skip
