"""Rivals end to end: what is folded is the masked model, budgets are met, and one factorisation has many ranks."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import RECIPES, analyse, compress, get_recipe, load, save
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.factors import PartsInOrder
from tests.support.cases import few, in_turn
from tests.support.models import ARGUMENTS, KINDS, images, outputs, tiny

NAMES = [
    name for name, recipe in RECIPES.items() if recipe.kinds != ["decomposition"] and name not in ("best", "wd-depth")
]
# what they remove is masked in the dense model; for that of vtp-gates see test_columns.py
PRUNING = ("ssp", "vtp-taylor", "vbp", "wdp-gates", "spvit-he-gates")
FEW = {"sense.images": 8, "sense.points": 3}


def quick(name: str):
    recipe = get_recipe(name)
    recipe = recipe if recipe.search is None else recipe.but(**{"search.epochs": 2})
    return recipe if recipe.sense is None else recipe.but(**FEW)


@pytest.mark.parametrize(("name", "kind"), few(in_turn(NAMES, KINDS), 3))
def test_every_rival_meets_its_budget_and_is_loaded_as_it_was_saved(name: str, kind: str, tmp_path: Path) -> None:
    model, data = tiny(kind), images(16, kind)
    small, report = compress(model, data.split(8), quick(name), 0.3, held_out=[images(8, kind, seed=5)])
    dense = parameter_count(model)
    assert report["params"]["compressed"] == parameter_count(small) <= 0.7 * dense
    assert parameter_count(small) > 0.7 * dense - 200  # a head of the tiny models has some 200 parameters
    assert report["macs"]["compressed"] == multiply_accumulates(small, data.shape[1:]) < report["macs"]["dense"]
    assert all(layer["relative_error"] >= 0 for layer in report["layers"])
    save(small, tmp_path / "small", report, model_args=ARGUMENTS[kind])
    assert torch.equal(outputs(load(tmp_path / "small"), data), outputs(small, data))


@pytest.mark.parametrize(
    ("kind", "name"), few(in_turn(KINDS, ["comcat", "corp", "losparse0", "vtp-gates", *PRUNING]), 3)
)
def test_all_of_it_is_the_model_as_it_was(name: str, kind: str) -> None:
    model, data = tiny(kind).double(), images(16, kind).double()
    analysis = analyse(model, data.split(8), name)
    plan = {curve.name: None if curve.full_rank else len(curve.errors) - 1 for curve in analysis.curves}
    same, _ = analysis.apply(RankPlan(plan))
    torch.testing.assert_close(outputs(same, data), outputs(model, data), rtol=1e-6, atol=1e-6)


def without(layer: nn.Module, gone: Tensor, mean: Tensor | None) -> None:
    """Zeros in the columns that read what goes, (n,), whose mean goes into the bias."""
    with torch.no_grad():
        if mean is not None:
            layer.bias += layer.weight[:, gone] @ mean[gone]  # type: ignore[operator]
        layer.weight[:, gone] = 0  # type: ignore[operator]


def kept_of(part: object, rank: int) -> tuple[Tensor, Tensor | None]:
    """What a rank keeps: inputs, or heads, and outputs where some of these go, too."""
    return part.kept(rank) if isinstance(part, PartsInOrder) else (part.units.kept(rank), None)  # type: ignore[attr-defined]


def masked(model: nn.Module, analysis: object, plan: RankPlan) -> nn.Module:
    """The dense model with zeros in the columns that read what the plan removes; means go into the bias of VBP."""
    same = copy.deepcopy(model)
    for decomposed in analysis.decomposed:  # type: ignore[attr-defined]
        for unit, part in decomposed.parts.items():
            layer = same.get_submodule(decomposed.linears[-1].name)
            kept, outputs = kept_of(part, plan.ranks[unit])
            count = layer.in_features
            ordered = part.inner.sum() if isinstance(part, PartsInOrder) else len(part.units.order)
            width = count // int(ordered)
            gone = torch.ones(count, dtype=torch.bool)
            gone[(kept[:, None] * width + torch.arange(width)).flatten()] = False
            without(layer, gone, getattr(part, "mean", None))
            if outputs is not None:
                made = torch.zeros(layer.out_features, dtype=torch.bool)
                made[outputs] = True
                with torch.no_grad():
                    layer.weight[~made], layer.bias[~made] = 0, 0
    return same


@pytest.mark.parametrize(("kind", "name"), few(in_turn(KINDS, PRUNING), 3))
def test_what_is_folded_is_the_masked_model(name: str, kind: str) -> None:
    model, data = tiny(kind).double(), images(16, kind).double()
    analysis = analyse(model, data.split(8), name)
    plan = analysis.plan(0.3)
    small, report = analysis.apply(plan)
    torch.testing.assert_close(outputs(small, data), outputs(masked(model, analysis, plan), data), rtol=1e-9, atol=1e-9)
    predicted = sum(curve.dense.parameters for curve in analysis.curves)
    predicted -= sum(curve.cost(plan.ranks[curve.name]) for curve in analysis.curves)
    assert parameter_count(model) - parameter_count(small) == predicted
    assert report["methods"]


def test_one_threshold_on_all_scores() -> None:
    """Of VBP: every hidden unit that stays varies at least as much as every one that goes, to within one step of fill."""
    model, data = tiny("vit"), images(16, "vit")
    analysis = analyse(model, data.split(8), "vbp")
    plan = analysis.plan(0.3)
    kept, gone = list[Tensor](), list[Tensor]()
    for curve in analysis.curves:
        scores, count = curve.errors[:-1], plan.ranks[curve.name]
        kept.append(scores[:count])
        gone.append(scores[count:] if count is not None else scores[:0])
    assert float(torch.cat(gone).max()) <= float(torch.cat(kept).min()) * (1 + 1e-6)


def test_afm_centred_whitening_and_flar_are_one_factorisation() -> None:
    """At equal ranks AFM and centred whitening are the same function, biases too; FLAR is the same about zero.

    So these rivals differ in their ranks alone: FLAR's factors are SVD-LLM's, bit by bit. (Statistics are sums of float32
    products, so that the first two agree to 1e-5.)
    """
    model, data = tiny("vit").double(), images(16, "vit").double()
    analyses = {
        name: analyse(model, data.split(8), name) for name in ("aafm", "afm_energy", "exact", "flar", "svd_llm")
    }
    ranks = RankPlan({curve.name: 5 for curve in analyses["aafm"].curves})
    small = {name: analysis.apply(ranks)[0] for name, analysis in analyses.items()}
    layers = [name for name, _ in small["aafm"].named_modules() if name in ranks.ranks]
    assert len(layers) == len(ranks.ranks)
    found = {name: [_map_of(each.get_submodule(layer)) for layer in layers] for name, each in small.items()}
    for one, other, tolerance in (("aafm", "exact", 1e-5), ("aafm", "afm_energy", 0.0), ("flar", "svd_llm", 0.0)):
        for (weight, bias), (weight_too, bias_too) in zip(found[one], found[other], strict=True):
            torch.testing.assert_close(weight, weight_too, rtol=0, atol=tolerance)
            torch.testing.assert_close(bias, bias_too, rtol=0, atol=tolerance)
    assert any((one[0] - other[0]).abs().max() > 1e-3 for one, other in zip(found["aafm"], found["flar"], strict=True))


def _map_of(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """The weight and bias of the affine map that a layer computes."""
    with torch.no_grad():
        bias = layer(torch.zeros(1, layer.in_features, dtype=torch.float64))[0]  # type: ignore[arg-type, call-overload]
        return layer(torch.eye(layer.in_features, dtype=torch.float64)) - bias, bias  # type: ignore[arg-type, call-overload]
