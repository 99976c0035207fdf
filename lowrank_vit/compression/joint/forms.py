"""The forms that a unit's module can take: its linear layers, whose shapes depend on the sizes of its units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lowrank_vit.architectures.linears import is_linear
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.units.base import Unit
from lowrank_vit.units.embeddings import EMBEDDING

Affine = NDArray[np.int64]  # (1 + units,): a constant, and what one more of each unit adds
SCALE_BYTES = 3  # of each row: a scale in float16 and a zero point
NAMED_BYTES = 190  # of the file's header, for two tensors more than a layer that is not rounded has
HALF_BYTES = 2  # of a value that is not rounded
HALF = 8 * HALF_BYTES  # bits: the layer stays in float16


@dataclass(frozen=True)
class Layer:
    """Describe a linear layer of a form: its weight's rows and columns, and how many weights the largest form has there."""

    name: str  # in the whole model
    rows: Affine
    columns: Affine
    weights: int


@dataclass(frozen=True)
class Form:
    """Describe a module as it is, or with its units at chosen sizes.

    ``sizes``: of each unit, those to choose from; empty for the module as it is. ``rest``: values beside the layers.
    ``whole``: with all units at their last size it computes what the dense module does, and is no larger.
    """

    layers: Sequence[Layer]
    rest: Affine
    sizes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    whole: bool = True

    @property
    def terms(self) -> NDArray[np.int64]:
        """Return 1 and the sizes of the units, for all combinations, (choices, 1 + units)."""
        grids = np.meshgrid(*[np.asarray(sizes) for sizes in self.sizes.values()], indexing="ij")
        ones = np.ones(grids[0].size if grids else 1, dtype=np.int64)
        return np.stack([ones, *(grid.ravel() for grid in grids)], 1).astype(np.int64)

    def stored(self, terms: NDArray[np.int64], bits: Sequence[int]) -> NDArray[np.int64]:
        """Count the bytes at all ``terms``, (choices,), with the layers' weights in ``bits``; 16 means float16."""
        total = HALF_BYTES * (terms @ self.rest)
        for layer, width in zip(self.layers, bits, strict=True):
            rows, columns = terms @ layer.rows, terms @ layer.columns
            total = (
                total + (rows * columns * width + 7) // 8 + (0 if width == HALF else SCALE_BYTES * rows + NAMED_BYTES)
            )
        return total


def outside_blocks(model: nn.Module) -> list[str]:
    """Return the layers outside all blocks that can be rounded: the patch embedding's, made linear, and the classifier."""
    get_classifier: Any = getattr(model, "get_classifier", None)
    classifier = None if get_classifier is None else get_classifier()
    return [
        name
        for name, module in model.named_modules()
        if is_linear(module) and (module is classifier or name == f"{EMBEDDING}.linear")
    ]


def linears(module: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers inside a module, or the module itself under the name ``""``."""
    return {name: layer for name, layer in module.named_modules() if is_linear(layer)}


def joined(*names: str) -> str:
    """Join the parts of a module's name that are not empty."""
    return ".".join(name for name in names if name)


def as_it_is(name: str, module: nn.Module) -> Form:
    """Return the form of a module without units."""
    layers = [
        Layer(joined(name, inner), np.array([each.out_features]), np.array([each.in_features]), each.weight.numel())
        for inner, each in linears(module).items()
    ]
    return Form(layers, np.array([parameter_count(module) - sum(layer.weights for layer in layers)]))


def counts(curves: Sequence[ErrorCurve]) -> dict[str, int]:
    """Return the largest size of each unit."""
    return {curve.name: curve.full_rank or len(curve.errors) - 1 for curve in curves}


def cut_form(decomposed: Unit, curves: Sequence[ErrorCurve], dense: nn.Module, points: int) -> Form | None:
    """Return the form with units at chosen sizes, found by folding a few; None where no size is cheaper than dense.

    Every dimension of a folded layer is affine in the sizes, so a fold at the largest size and one for each unit at a
    smaller one tell them all. ``points``: how many sizes of each unit are offered at most.
    """
    largest = counts(curves)
    whole = _weights(decomposed.cut(largest).fold()) <= _weights(dense)
    whole = whole and all(len(curve.errors) > largest[curve.name] for curve in curves)
    sizes = {curve.name: _sizes(curve, points, whole) for curve in curves}
    if not all(sizes.values()):
        return None
    largest = {unit: each[-1] for unit, each in sizes.items()}
    shapes = _shapes(decomposed.cut(largest).fold())
    slopes = []
    for unit, each in sizes.items():
        if len(each) > 1:
            smaller = _shapes(decomposed.cut({**largest, unit: each[0]}).fold())
            slopes.append({name: (shapes[name] - smaller[name]) // (each[-1] - each[0]) for name in shapes})
        else:
            slopes.append({name: np.zeros_like(shape) for name, shape in shapes.items()})
    affine = {
        name: np.stack(
            [
                shape - sum(slope[name] * size for slope, size in zip(slopes, largest.values(), strict=True)),
                *(slope[name] for slope in slopes),
            ],
            1,
        )
        for name, shape in shapes.items()
    }
    rest = affine.pop(REST)[0]
    layers = [
        Layer(joined(decomposed.name, name), rows, columns, int(np.prod(shapes[name])))
        for name, (rows, columns) in affine.items()
    ]
    return Form(layers, rest, sizes, whole)


REST = "*"  # no module's name


def _sizes(curve: ErrorCurve, points: int, whole: bool) -> list[int]:
    """Return sizes spread evenly over those that an allocator may choose, ascending, with the largest one if ``whole``."""
    ranks = curve.ranks
    if not ranks:
        return []
    places = np.unique(np.linspace(0, len(ranks) - 1, min(points, len(ranks))).round().astype(int))
    full = [curve.full_rank or len(curve.errors) - 1] if whole else []
    return sorted({*(ranks[int(place)] for place in places), *full})


def _weights(module: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in linears(module).values())


def _shapes(module: nn.Module) -> dict[str, NDArray[np.int64]]:
    """Return rows and columns of the linear layers inside a module, and how many other values it has, (1,)."""
    layers = linears(module)
    shapes = {name: np.array(list(layer.weight.shape)) for name, layer in layers.items()}
    rest = parameter_count(module) - sum(layer.weight.numel() for layer in layers.values())
    return {**shapes, REST: np.array([rest])}
