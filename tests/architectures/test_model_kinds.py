"""Every kind of model and every recipe: compressed as promised, or refused in one line; nothing is left out unsaid."""

import copy
import logging
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import InputError, compress, load, quantize, save
from lowrank_vit.architectures.linears import call_every_layer, dense_weight, find_sites
from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.compress import analyse
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.compression.recipes import RECIPES
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.fold import CutLayer, fold
from lowrank_vit.modules.surgery import get_linear, replace_module
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.calibrate.statistics import STATISTICS
from lowrank_vit.stages.calibrate.stream import calibrate
from lowrank_vit.stages.training.finetune import partial_parameters
from tests.support.cases import few
from tests.support.kinds import KINDS
from tests.support.models import distance

REDUCTION = 0.1
SINGLE = [  # those that measure curves, or refit outputs, need blocks of a known kind
    recipe.but(solver="closed_form")
    for recipe in RECIPES.values()
    if set(recipe.units) == {"decomposition"} and recipe.sense is None and recipe.refit is None
]
COMPRESSIBLE = [name for name, kind in KINDS.items() if kind.layers is None]
PAIRS = [(kind, SINGLE[place % len(SINGLE)]) for place, kind in enumerate(COMPRESSIBLE)]  # each kind with one in turn
PAIRS += [(COMPRESSIBLE[0], recipe) for recipe in SINGLE if (COMPRESSIBLE[0], recipe) not in PAIRS]
REFUSED = [(name, "whole") for name, kind in KINDS.items() if kind.halves]
REFUSED += [(name, recipe) for name, kind in KINDS.items() if kind.layers for recipe in ("exact", "heads")]
compressible = pytest.mark.parametrize("kind", COMPRESSIBLE)
by_halves = pytest.mark.parametrize("kind", few([name for name, kind in KINDS.items() if kind.halves is None], 3))


@cache
def made(kind: str) -> tuple[nn.Module, Tensor]:
    """A model, which nobody changes, and its images."""
    return KINDS[kind].make(), KINDS[kind].images(6)


@cache
def statistics(kind: str) -> dict[str, Moments]:
    """All that any recipe for single layers reads."""
    model, data = made(kind)
    model = call_every_layer(copy.deepcopy(model))
    return calibrate(
        model,
        find_sites(model),
        set(STATISTICS.names()) - {"head_fisher", "normalised_output_second", "scan_change"},
        [data[:2], data[2:]],
    )


def check(kind: str, compressed: nn.Module, report: dict) -> None:
    """The reduction is met by smaller layers, the outputs are finite, and every layer is accounted for."""
    model, data = made(kind)
    assert parameter_count(compressed) <= (1 - REDUCTION) * parameter_count(model)
    assert report["params"]["compressed"] == parameter_count(compressed)
    cut = [layer for layer in report["layers"] if layer["rank"] is not None]
    assert cut
    for layer in cut:
        before = dict(model.named_modules()).get(layer["name"])  # embeddings are modules of the smaller model only
        assert before is None or parameter_count(compressed.get_submodule(layer["name"])) < parameter_count(before)
    with torch.no_grad():
        assert compressed(data).isfinite().all()
    told = [*(layer["name"] for layer in report["layers"]), *report["left_dense"]["layers"], "head", "patch_embed"]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert any(f"{name}.".startswith((f"{own}.", "head_dist.")) for own in told), name


def at_full_rank(analysis: Analysis) -> nn.Module:
    """Every site by all directions that its decomposition found."""
    model = copy.deepcopy(analysis.model)
    for unit in analysis.units:
        site, factors = unit.site, analysis.parts[unit.name][unit.name]
        u, v = factors.u, factors.v
        lost = dense_weight(model, site) - u @ v.T
        shift = analysis.moments[site.name].mean("input_sum") @ lost if analysis.recipe.bias_correction else None
        layer = CutLayer(site, site.full_rank, u, v, None, shift)
        replace_module(model, site.name, fold(layer, get_linear(analysis.model, site)))
    return model


@pytest.mark.parametrize(("kind", "recipe"), few(PAIRS, 5), ids=lambda each: getattr(each, "name", each))
def test_a_recipe_for_single_layers_compresses_it(kind: str, recipe: Recipe) -> None:
    model, data = made(kind)
    analysis = analyse(model, [data], recipe, moments=statistics(kind), device="cpu")
    assert isinstance(analysis, Analysis)
    if recipe.name not in ("paper", "paper_literal"):  # what the mean image does not see is lost at any rank
        # AAFM knows the weight's columns from its outputs alone, whose products were taken in float32
        assert distance(at_full_rank(analysis), model, data) < (1e-4 if recipe.name == "afm_energy" else 1e-9)
    check(kind, *analysis.compress(REDUCTION))


@by_halves
def test_best_compresses_it(kind: str) -> None:
    model, data = made(kind)
    recipe = RECIPES["heads"]
    check(kind, *compress(model, [data[:2], data[2:]], recipe, REDUCTION, device="cpu"))
    analysis = analyse(model, [data], recipe.but(refit=False, measured=0), device="cpu")
    whole = RankPlan({curve.name: len(curve.errors) - 1 for curve in analysis.curves})
    assert distance(analysis.apply(whole)[0], model, data) < 1e-9


@pytest.mark.parametrize("kind", few([name for name, kind in KINDS.items() if kind.halves and not kind.layers]))
def test_best_takes_the_rest_layer_by_layer(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Announced in one line and in the report; modules that are known are still taken as a whole."""
    model, data = made(kind)
    with caplog.at_level(logging.WARNING):
        compressed, report = compress(model, [data[:2], data[2:]], reduction=REDUCTION, device="cpu")
    check(kind, compressed, report)
    fallback = report["fallback"]
    assert report["recipe"] == fallback["asked"] == "best"
    assert str(KINDS[kind].halves) in fallback["reason"]
    (line,) = [record.getMessage() for record in caplog.records if "recipe 'best'" in record.getMessage()]
    assert fallback["reason"] in line
    assert "\n" not in line
    whole = {layer["name"] for layer in report["layers"]} - set(fallback["layers"])
    assert all(not isinstance(dict(model.named_modules()).get(name), nn.Linear) for name in whole)
    assert all(isinstance(model.get_submodule(name), nn.Linear) for name in fallback["layers"])
    # plain but for one module; embeddings are taken whole in any model
    streamed = kind in ("value norm", "normalised hidden units", "eva02, apart", "convnext v2")
    of_blocks = {name for name in whole if not name.startswith(("patch_embed", "pos_embed", "stem"))}
    assert bool(of_blocks) == (kind not in ("parallel scaling", "gmlp", "convnext v2"))
    assert fallback["left_out"] == ([] if streamed else ["measured", "refit"])
    assert bool(report["measured_losses"]) == ("refit" in report) == streamed


@pytest.mark.parametrize(("kind", "recipe"), few(REFUSED, 3))
def test_what_is_refused_is_named(kind: str, recipe: str) -> None:
    """A recipe for whole modules without a method for single layers has nothing to fall back to."""
    model, data = made(kind)
    chosen = RECIPES["heads"].only("attention", "mlp") if recipe == "whole" else recipe
    with pytest.raises(
        InputError, match=str(KINDS[kind].halves if recipe == "whole" else KINDS[kind].layers)
    ) as refused:
        compress(model, [data], chosen, REDUCTION, device="cpu")
    assert "\n" not in str(refused.value)
    assert any(remedy in str(refused.value) for remedy in ("`sites=`", "recipe for single layers", "`list recipes`"))


def test_the_losses_of_whole_modules_and_of_single_layers_are_in_one_currency() -> None:
    """Without the second layer of an MLP both lose the same: 1/2 tr(G W^T C W), with tokens alike and G not damped."""
    model, data = made("vit")
    changes = {"mlp.gradient_damping": 0.0, "mlp.sensitivity": 0.0, "mlp.damping": 0.0, "decomposition.damping": 0.0}
    recipe = RECIPES["heads"].but(refit=False, measured=0, **changes)
    units, layers = (analyse(model, [data], recipe.only(kind), device="cpu") for kind in ("mlp", "decomposition"))
    whole = {curve.name.removesuffix(".hidden"): curve.errors for curve in units.curves}
    single = {curve.name.removesuffix(".fc2"): curve.errors for curve in layers.curves if "fc2" in curve.name}
    assert whole.keys() == single.keys()
    for name, errors in whole.items():
        torch.testing.assert_close(errors[0], single[name][0], rtol=1e-3, atol=0)


@pytest.mark.slow
@compressible
def test_it_is_saved_and_loaded_and_trained_in_part(kind: str, tmp_path: Path) -> None:
    model, data = made(kind)
    compressed, _ = compress(model, [data], "heads", REDUCTION, device="cpu")
    save(compressed, tmp_path / "small", model_args=KINDS[kind].arguments)
    assert distance(load(tmp_path / "small"), compressed, data) == 0
    rounded, addition = quantize(load(tmp_path / "small", dtype=torch.float32), 8)
    save(rounded, tmp_path / "eight", {**compressed.compression_report, **addition}, model_args=KINDS[kind].arguments)
    assert distance(load(tmp_path / "eight"), rounded, data.float()) == 0
    trained = set(partial_parameters(compressed))
    head = {id(p) for p in compressed.get_submodule("head").parameters()}
    for name, parameter in compressed.named_parameters():
        owner = name.rpartition(".")[0]
        affine = type(compressed.get_submodule(owner)).__name__ == "Affine"  # called a norm, but normalises nothing
        if id(parameter) in head or name.endswith("bias") or ("norm" in owner.rpartition(".")[2] and not affine):
            assert name in trained, name
        if name.endswith(("down.weight", "up.weight", "_token", "pos_embed")):
            assert name not in trained, name
    assert any(name.startswith("patch_embed") for name in trained) == hasattr(model, "patch_embed")


@pytest.mark.parametrize("kind", few(COMPRESSIBLE, 3))
def test_statistics_do_not_depend_on_the_batches(kind: str) -> None:
    """That is, all rows of an image are neighbours in every layer's input."""
    model, data = made(kind)
    model = call_every_layer(copy.deepcopy(model))
    needs = {"normalised_input_second", "fisher_rows", "sensitive_second"}
    one_by_one = calibrate(model, find_sites(model), needs, data.split(1))
    for name, own in one_by_one.items():
        for key in ("normalised_input_second", "fisher_rows", "sensitive_second", "sensitive_tokens"):
            expected = statistics(kind)[name].sums[key]
            assert torch.dist(own.sums[key], expected) < 1e-4 * expected.norm(), (name, key)
