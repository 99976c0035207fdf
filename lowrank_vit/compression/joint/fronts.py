"""All that can be chosen for a module, sizes and bits together: those choices that nothing cheaper surpasses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from lowrank_vit.compression.joint.forms import HALF, Form, Layer
from lowrank_vit.records.costs import NOTHING
from lowrank_vit.records.curves import ErrorCurve

Losses = Mapping[str, Mapping[int, float]]  # of a layer's rounding, by its name, by bits
PAGE = 16  # bytes in which costs are counted: finer ones would only make the knapsack slower
MANY = 500  # combinations of bits that are tried at every combination of sizes


@dataclass(frozen=True)
class Choice:
    """Hold the sizes of a module's units, and the bits of its layers; a layer without bits stays in float16."""

    sizes: Mapping[str, int | None] = field(default_factory=dict)
    bits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Front:
    """Hold the choices of a module, from the cheapest to the best, with costs and losses as a curve for an allocator.

    "Rank" i of the curve is ``choices[i]``; dense is the module in float16. Costs are in pages.
    """

    curve: ErrorCurve
    choices: Sequence[Choice]

    def chosen(self, rank: int | None, units: Sequence[str]) -> Choice:
        return Choice(dict.fromkeys(units)) if rank is None else self.choices[rank]


def pareto(costs: NDArray[np.float64], losses: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of the points that no other surpasses: costs rise, losses fall.

    >>> pareto(np.array([3.0, 1.0, 2.0, 2.0]), np.array([0.0, 5.0, 6.0, 4.0])).tolist()
    [1, 3, 0]
    """
    order = np.lexsort((losses, costs))
    best = np.minimum.accumulate(losses[order])
    better = np.concatenate([[True], losses[order][1:] < best[:-1]])
    return order[better]


def combinations(layers: Sequence[Layer], losses: Losses) -> list[tuple[int, ...]]:
    """List the bits of all layers together: every combination or, where these are many, the best at the largest form."""
    costs, lost, chosen = np.zeros(1), np.zeros(1), list[tuple[int, ...]]([()])
    for layer in layers:
        bits = list(losses[layer.name])
        chosen = [(*before, each) for before in chosen for each in bits]
        more = np.array([layer.weights * each / 8 for each in bits])
        worse = np.array([losses[layer.name][each] for each in bits])
        costs, lost = (np.add.outer(*pair).ravel() for pair in ((costs, more), (lost, worse)))
        if len(chosen) > MANY:
            kept = pareto(costs, lost)
            costs, lost, chosen = costs[kept], lost[kept], [chosen[index] for index in kept.tolist()]
    return chosen


@dataclass(frozen=True)
class _Points:
    """Hold all choices of a form: combinations of bits times combinations of sizes, in this order."""

    form: Form
    terms: NDArray[np.int64]
    bits: Sequence[tuple[int, ...]]
    pages: NDArray[np.float64]
    losses: NDArray[np.float64]

    @classmethod
    def of(cls, form: Form, errors: Mapping[str, ErrorCurve], losses: Losses) -> "_Points":
        """Sum what each combination of sizes loses and what the rounding of its layers adds to it."""
        terms, bits = form.terms, combinations(form.layers, losses)
        by_size = np.zeros(len(terms))
        for place, unit in enumerate(form.sizes, 1):
            by_size += np.array([errors[unit].error(int(size)) for size in terms[:, place]])
        shares = [
            (terms @ layer.rows) * (terms @ layer.columns) / layer.weights if form.whole else np.ones(len(terms))
            for layer in form.layers
        ]
        lost = [
            by_size
            + sum(share * losses[layer.name][b] for share, layer, b in zip(shares, form.layers, each, strict=True))
            for each in bits
        ]
        pages = [np.ceil(form.stored(terms, each) / PAGE) for each in bits]
        return cls(form, terms, bits, np.concatenate(pages), np.concatenate(lost))

    def choice(self, index: int, units: Sequence[str]) -> Choice:
        """Return the sizes and bits of a point; of the module as it is, ``units`` have no size."""
        which, place = divmod(index, len(self.terms))
        sizes = dict(zip(self.form.sizes, self.terms[place, 1:].tolist(), strict=True))
        rounded = zip(self.form.layers, self.bits[which], strict=True)
        return Choice(sizes or dict.fromkeys(units), {layer.name: bits for layer, bits in rounded if bits != HALF})


def front(name: str, forms: Sequence[Form], curves: Sequence[ErrorCurve], losses: Losses, dense_bytes: int) -> Front:
    """Return a module's choices: those of all its forms that no other surpasses.

    ``losses``: of the rounding of a layer in its largest form; a smaller layer of a ``whole`` form loses in proportion to
    its weights. ``dense_bytes``: of the module in float16.
    """
    errors = {curve.name: curve for curve in curves}
    points = [_Points.of(form, errors, losses) for form in forms]
    pages, lost = (np.concatenate(each) for each in zip(*((own.pages, own.losses) for own in points), strict=True))
    starts, dense = np.cumsum([0, *(len(own.pages) for own in points)]), -(-dense_bytes // PAGE)
    kept = [index for index in pareto(pages, lost).tolist() if pages[index] < dense]
    choices = []
    for index in kept:
        which = int(np.searchsorted(starts, index, side="right")) - 1
        choices.append(points[which].choice(index - int(starts[which]), list(errors)))
    kept, choices = kept[:1] + kept, choices[:1] + choices  # no allocator chooses rank 0
    table = (*(int(pages[index]) for index in kept), dense)
    return Front(ErrorCurve(name, torch.from_numpy(lost[kept]), NOTHING, NOTHING, table=table), choices)
