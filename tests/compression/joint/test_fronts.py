"""Sizes and bits chosen together: against all that could be chosen, the files, what they compute, and what is refused."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import lowrank_vit
from lowrank_vit import compress
from lowrank_vit.compression.joint.forms import NAMED_BYTES, Form, Layer, cut_form, linears
from lowrank_vit.compression.joint.fronts import PAGE, Front, Losses, front
from lowrank_vit.compression.joint.planning import JointPlan, JointPlanner
from lowrank_vit.modules.counting import saved_bytes
from lowrank_vit.modules.quantized_linear import QuantizedLinear
from lowrank_vit.records.budgets import budget_of
from lowrank_vit.records.costs import Cost
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.stages.allocate.rules import Knapsack
from lowrank_vit.stages.quantize.gptq import ErrorFeedback
from tests.support.cases import in_turn
from tests.support.models import VIT, images, outputs, tiny

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


@pytest.mark.parametrize(("seed", "pages"), in_turn(range(2), [110, 150]))
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


WIDTHS = (2, 3, 4, 8)


WIDE = {**VIT, "embed_dim": 48}  # so that a file is not mostly its header


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["heads", "loss_aware"])
@pytest.mark.parametrize("share", [0.45, 0.7])
def test_the_file_is_at_most_one_per_cent_below_the_budget(recipe: str, share: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **WIDE).eval()
    limit = int(share * saved_bytes(model, torch.float16))
    small, report = compress(model, [images(12)], recipe, budget=f"bytes={limit}B", bits=WIDTHS)
    lowrank_vit.save(small, tmp_path / "small", report, model_args=WIDE)
    size = lowrank_vit.file_bytes(tmp_path / "small")
    assert 0.99 * limit <= size <= limit
    assert report["budget"]["counted"] == size
    found = {name: each.bits for name, each in small.named_modules() if isinstance(each, QuantizedLinear)}
    assert found == report["quantization"]["layer_bits"]
    assert set(found.values()) <= set(WIDTHS)
    assert torch.equal(outputs(lowrank_vit.load(tmp_path / "small"), images(4)), outputs(small, images(4)))


@pytest.mark.slow
def test_a_form_tells_the_shapes_of_every_size() -> None:
    """Against modules that are folded at other sizes than those that the form was found from."""
    analysis = lowrank_vit.analyse(tiny(), [images(12)], "heads")
    for decomposed in analysis.decomposed:
        curves = analysis.curves_by_unit[decomposed.name]
        form = cut_form(decomposed, curves, analysis.model.get_submodule(decomposed.name), 4)
        assert form is not None
        assert form.whole
        for terms in form.terms[1::3]:
            module = decomposed.cut(dict(zip(form.sizes, terms[1:].tolist(), strict=True))).fold()
            found = {f"{decomposed.name}.{name}": layer for name, layer in linears(module).items()}
            assert [(layer.name, terms @ layer.rows, terms @ layer.columns) for layer in form.layers] == [
                (name, *layer.weight.shape) for name, layer in found.items()
            ]
            weights = sum(layer.weight.numel() for layer in found.values())
            assert terms @ form.rest == sum(each.numel() for each in module.parameters()) - weights


class Dearer(JointPlanner):
    """Files that are larger than their prices say."""

    surplus = 1700  # bytes

    def _chosen(self, fronts: Mapping[str, Front], ranks: RankPlan) -> JointPlan:
        return JointPlan(ranks, {})

    def count(self, plan: JointPlan) -> int:
        (front,) = ONE_MODULE.values()
        saved = PAGE * (front.curve.dense_cost - front.curve.cost(plan.sizes.ranks["module"]))
        return saved_bytes(self.whole, torch.float16) - saved + self.surplus


CURVE = ErrorCurve("module", torch.tensor([9.0, 9.0, 1.0]).double(), 0, 0, table=(100, 100, 1000, 2000))
ONE_MODULE = {"module": Front(CURVE, ())}


@pytest.mark.slow
def test_a_plan_that_is_too_large_is_left_for_the_next_cheaper_one() -> None:
    """There is none within many pages, and prices a page lower would buy the same plan again."""
    planner = Dearer(lowrank_vit.analyse(tiny(), [images(12)], "best"), (8,), ErrorFeedback())
    limit = saved_bytes(planner.whole, torch.float16) - PAGE * 900
    plan, counted = planner._within(ONE_MODULE, limit, budget_of(f"bytes={limit}B"))
    assert plan.sizes.ranks == {"module": 1}
    assert counted <= limit
