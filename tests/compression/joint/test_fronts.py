"""Sizes and bits from one knapsack, against all that could be chosen; bytes against those of real files."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from lowrank_vit.compression.joint.forms import NAMED_BYTES, Form, Layer
from lowrank_vit.compression.joint.fronts import PAGE, Front, Losses, front
from lowrank_vit.records.costs import Cost
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.stages.allocate.rules import Knapsack
from tests.support.cases import in_turn

BITS = (2, 4, 8, 16)
Option = tuple[int, float]  # pages and loss


def attention(name: str, slope: float) -> tuple[Form, list[ErrorCurve]]:
    """Queries and keys, values, and an output of width 16, with two units of up to 12 directions."""
    layers = [
        Layer(f"{name}.query", np.array([0, 1, 0]), np.array([16, 0, 0]), 12 * 16),
        Layer(f"{name}.key_value", np.array([0, 1, 1]), np.array([16, 0, 0]), 24 * 16),
        Layer(f"{name}.proj", np.array([16, 0, 0]), np.array([0, 0, 1]), 16 * 12),
    ]
    units = [f"{name}.logits", f"{name}.values"]
    sizes = {unit: [3, 6, 9, 12] for unit in units}
    losses = [slope * scale * torch.linspace(1, 0, 13) ** 3 for scale in (0.4, 1.0)]
    curves = [ErrorCurve(unit, loss, Cost(32), Cost(384)) for unit, loss in zip(units, losses, strict=True)]
    return Form(layers, np.array([16, 1, 0]), sizes), curves


def problem(seed: int) -> tuple[list[tuple[Form, list[ErrorCurve]]], Losses]:
    """Two modules whose layers lose unlike amounts by their rounding."""
    generator = np.random.default_rng(seed)
    modules = [attention("first", 1.0), attention("second", 3.0)]
    layers = [layer for form, _ in modules for layer in form.layers]
    return modules, {
        layer.name: {bits: float(scale) * (4.0 ** (2 - bits) - 4.0**-14) for bits in BITS}
        for layer, scale in zip(layers, generator.uniform(0.02, 1.0, len(layers)), strict=True)
    }


def options(form: Form, curves: Sequence[ErrorCurve], losses: Losses) -> Iterator[Option]:
    """Every combination of sizes and bits of a module, counted by hand."""
    for sizes in itertools.product(*form.sizes.values()):
        logits, values = sizes
        shapes = [(logits, 16), (logits + values, 16), (16, values)]
        for bits in itertools.product(BITS, repeat=3):
            stored = sum(-(-rows * columns * width // 8) for (rows, columns), width in zip(shapes, bits, strict=True))
            stored += sum(3 * rows + NAMED_BYTES for (rows, _), width in zip(shapes, bits, strict=True) if width < 16)
            lost = sum(curve.error(size) for curve, size in zip(curves, sizes, strict=True))
            for layer, (rows, columns), width in zip(form.layers, shapes, bits, strict=True):
                lost += losses[layer.name][width] * rows * columns / layer.weights
            yield -(-(stored + 2 * (16 + logits)) // PAGE), lost


def made(modules: Sequence[tuple[Form, list[ErrorCurve]]], losses: Losses, dense: int = 4000) -> list[Front]:
    return [front(f"module{place}", [form], curves, losses, dense) for place, (form, curves) in enumerate(modules)]


@pytest.mark.parametrize(("seed", "pages"), in_turn(range(4), [110, 124, 150, 185]))
def test_the_knapsack_loses_as_little_as_the_best_of_all_choices(seed: int, pages: int) -> None:
    modules, losses = problem(seed)
    both = [np.array(list(options(form, curves, losses))) for form, curves in modules]
    costs, lost = (np.add.outer(both[0][:, place], both[1][:, place]) for place in (0, 1))
    least = np.where(costs <= pages, lost, np.inf).min()
    found = made(modules, losses)
    plan = Knapsack()([each.curve for each in found], pages).ranks
    assert sum(each.curve.cost(plan[each.curve.name]) for each in found) <= pages
    assert sum(each.curve.error(plan[each.curve.name]) for each in found) == pytest.approx(least, rel=1e-12)


def test_a_choice_says_what_its_cost_and_its_loss_are_of() -> None:
    (form, curves), losses = problem(0)[0][0], problem(0)[1]
    found = made([(form, curves)], losses)[0]
    for rank, choice in enumerate(found.choices):
        sizes, bits = tuple(choice.sizes.values()), tuple(choice.bits.get(layer.name, 16) for layer in form.layers)
        places = itertools.product(itertools.product(*form.sizes.values()), itertools.product(BITS, repeat=3))
        known = dict(zip(places, options(form, curves, losses), strict=True))
        assert known[sizes, bits] == pytest.approx((found.curve.cost(rank), found.curve.error(rank)))


def test_what_is_as_large_as_float16_is_no_choice() -> None:
    modules, losses = problem(0)
    found = made(modules[:1], losses, dense=1300)[0]
    assert found.curve.table is not None
    assert max(found.curve.table[:-1]) < found.curve.table[-1] == -(-1300 // PAGE)
    assert set(found.chosen(None, ["unit"]).sizes.values()) == {None}
