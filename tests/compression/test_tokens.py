"""Fewer tokens end to end, by rules and planned by block, in dense and compressed models, and under one budget."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_vit import InputError, analyse, compress, compress_with_fewer_tokens, fewer_tokens, get_recipe, load, save
from lowrank_vit.compression.token_plan import BlockCosts, TokenPlanner, cheapest_path, filled
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.modules.token_block import TokenBlock
from lowrank_vit.objectives import divergences
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.stages.correct.output_refit import OutputRefit
from lowrank_vit.stages.tokens import TOKENS, LearntRule
from lowrank_vit.stages.tokens.merging import PlannedMerging
from tests.support.cases import few
from tests.support.finetuning import TinyData
from tests.support.hardware import on_cpu
from tests.support.models import ARGUMENTS, images, macs, outputs, tiny

RULES = TOKENS.names()
BEST, BARE = (get_recipe(name).but(refit=False, measured=0) for name in ("best", "heads"))
NOTHING = [("tome", {"r": 0}), ("evit", {"keep": 1.0}), ("pitome", {"keep": 1.0})]
STRENGTHS = [("tome", {"r": 2}), ("evit", {"keep": 0.5}), ("pitome", {"keep": 0.9})]


def learning(rule: str) -> dict[str, Any]:
    """What a rule learns on, if it learns."""
    made = TOKENS.get(rule)()
    if not isinstance(made, LearntRule):
        return {}
    training = on_cpu(epochs=1)
    return {"learn_on": TinyData(noise=0.0) if made.labelled else [images(16)], "training": training}


@pytest.mark.parametrize(("rule", "nothing"), [*NOTHING, ("merge", {})])
@pytest.mark.parametrize("smaller", few([False, True], 1))
def test_nothing_merged_is_the_model_as_it_was(rule: str, nothing: dict[str, float], smaller: bool) -> None:
    """By the planned merging, too, whose last block computes what the head reads alone."""
    model, data = tiny("vit").double(), images(6, "vit").double()
    model = compress(model, data.split(3), BEST, 0.3)[0] if smaller else model
    same = fewer_tokens(model, rule, **nothing)
    torch.testing.assert_close(outputs(same, data), outputs(model, data), rtol=1e-10, atol=1e-10)
    assert rule != "merge" or macs(same) < macs(model)


@pytest.mark.parametrize(("rule", "options"), STRENGTHS)
def test_fewer_products_in_a_real_forward_pass_and_the_same_parameters(rule: str, options: dict[str, float]) -> None:
    model, data = tiny("vit"), images(6, "vit")
    small = fewer_tokens(model, rule, **options)
    assert macs(small) < macs(model)
    assert parameter_count(small) == parameter_count(model)
    assert outputs(small, data).isfinite().all()
    assert not any(isinstance(module, TokenBlock) for module in model.modules())  # the model itself is not changed


@pytest.mark.parametrize(("rule", "options"), STRENGTHS)
def test_a_compressed_model_with_fewer_tokens_is_loaded_as_it_was_saved(
    rule: str, options: dict[str, float], tmp_path: Path
) -> None:
    model, data = tiny("vit"), images(6, "vit")
    smaller, _ = compress(model, data.split(3), BEST, 0.3)
    small = fewer_tokens(smaller, rule, **options)
    report = small.compression_report
    assert report["macs"]["compressed"] == macs(small) < macs(smaller)  # type: ignore[index, call-overload]
    assert report["tokens"]["rule"] == rule  # type: ignore[index, call-overload]
    save(small, tmp_path / "small", model_args=ARGUMENTS["vit"])
    again = load(tmp_path / "small")
    assert torch.equal(outputs(again, data), outputs(small, data))
    assert any(isinstance(module, LowRankAttention) for module in again.modules())


@pytest.mark.parametrize("rule", few(RULES, 1))
@pytest.mark.parametrize("smaller", few([True, False], 1))
def test_a_share_of_multiply_accumulates_is_met_by_the_least_strength(rule: str, smaller: bool) -> None:
    model = tiny("vit")
    start = compress(model, images(6, "vit").split(3), BEST, 0.2)[0] if smaller else model
    small: Any = fewer_tokens(start, rule, macs=0.7, **learning(rule))
    assert macs(small) <= 0.7 * macs(model)
    strengths = TOKENS.get(rule)().strengths(16)
    counts = [macs(each(start)) for each in strengths]
    if rule != "pitome":  # it compares all with all in every block, which costs more than the first few pairs save
        assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0]
    assert macs(small) == next(count for count in counts if count <= 0.7 * macs(model))
    if smaller:
        assert small.compression_report["macs"] == {"dense": macs(model), "compressed": macs(small)}


def test_a_share_of_patches_needs_their_number() -> None:
    model: Any = tiny("vit")
    del model.patch_embed.num_patches
    with pytest.raises(InputError, match="does not say how many patches"):
        fewer_tokens(model, "pitome", keep=0.9)


@pytest.mark.parametrize("rate", [0.0, 1e-3, 1.0])
def test_the_path_is_the_cheapest_of_all(rate: float) -> None:
    costs = BlockCosts([30, 20, 40, 10], [2, 3, 2, 2], [50, 60, 70, 80], 1, 10, 1)
    rng = np.random.default_rng(0)
    curves = [np.concatenate([[0.0], rng.random(9).cumsum()]) for _ in range(3)]

    def total(pairs: tuple[int, ...]) -> float:
        gone, lost = 0, 0.0
        for curve, count in zip(curves, pairs[:-1], strict=True):
            lost += curve[gone + count] - curve[gone]
            gone += count
        return lost + rate * costs(pairs)

    def possible(pairs: tuple[int, ...]) -> bool:
        tokens = 10
        for count in pairs:
            if count > (tokens - 1) // 2:
                return False
            tokens -= count
        return True

    best = min(total((*pairs, 0)) for pairs in product(range(5), repeat=3) if possible(pairs))
    assert total(cheapest_path(curves, costs, rate, 1)) == pytest.approx(best)


def test_a_curve_never_falls_and_goes_through_what_was_measured() -> None:
    curve = filled([(2, 0.1), (5, 0.05), (8, 0.9)], 12)
    assert curve[0] == 0
    assert (np.diff(curve) >= 0).all()
    assert curve[[2, 5, 8]].tolist() == pytest.approx([0.1, 0.1, 0.9])


def test_the_planned_pairs_keep_within_their_limit() -> None:
    analysis = analyse(tiny("vit"), images(16, "vit").split(8), BARE, device="cpu")
    planner, dense = TokenPlanner(analysis), analysis.subject.cost.macs
    for share in (0.55, 0.45):
        rule = planner.rule(share * dense)
        assert (share - 0.15) * dense < planner.counted(rule) <= share * dense
    with pytest.raises(InputError, match="no merging of tokens leaves"):
        planner.rule(0.1 * dense)


def test_refitted_outputs_are_nearer_behind_merged_tokens() -> None:
    torch.manual_seed(0)
    model, data = tiny("vit").double(), images(48, "vit").double()
    small = PlannedMerging((7, 0))(model)
    names = [f"blocks.{block}.{layer}" for block in range(2) for layer in ("attn.proj", "mlp.fc2")]
    even = {name: torch.ones(17, dtype=torch.float64) for name in names}
    [before] = divergences(Classification(), model, [small], [data])
    ridges = OutputRefit()(model, small, even, data.split(16))
    [after] = divergences(Classification(), model, [small], [data])
    assert ridges.keys() == set(names)
    assert after < before


def test_best_merges_where_macs_are_the_budget_and_pivots_where_parameters_are() -> None:
    model, data = tiny("vit"), images(16, "vit")
    by_macs, report = compress(model, [data[:8]], budget="macs=0.7", held_out=[data[8:]], device="cpu")
    assert report["macs"]["compressed"] == macs(by_macs) <= 0.7 * macs(model)
    assert report["tokens"]["rule"] == "merge"
    assert report["recipe_fields"]["pivoted"] is False
    assert len(report["shared"]["tried"]) >= 1
    _, report = compress(model, [data[:8]], budget="params=0.7", device="cpu")
    assert "tokens" not in report
    assert report["recipe_fields"]["pivoted"] is True
    _, report = compress(model, [data[:8]], get_recipe("best").but(tokens=False), budget="macs=0.7", device="cpu")
    assert "tokens" not in report


@pytest.mark.parametrize("share", few([0.5, 0.4], 1))
def test_the_split_that_is_best_on_unseen_images_keeps_within_the_budget(share: float, tmp_path: Path) -> None:
    data, model = images(12, "vit"), tiny("vit")
    small, report = compress_with_fewer_tokens(
        model, data[:6].split(3), {"macs": share}, BEST, held_out=[data[6:]], device="cpu"
    )
    found: Any = report
    tried = found["shared"]["tried"]
    assert macs(small) <= share * macs(model)
    assert found["macs"] == {"dense": macs(model), "compressed": macs(small)}
    [divergence] = divergences(Classification(), model, [small], [data[6:]])
    assert divergence == pytest.approx(min(each["divergence"] for each in tried), rel=1e-4)
    kept = [each["parameters"] for each in tried]
    assert kept == sorted(kept, reverse=True)  # the less tokens save, the more layers have to
    save(small, tmp_path / "small", model_args=ARGUMENTS["vit"])
    assert torch.equal(outputs(load(tmp_path / "small"), data), outputs(small, data))


def test_a_budget_that_tokens_do_not_serve_is_refused_where_they_were_asked_for() -> None:
    with pytest.raises(InputError, match="fewer tokens share no budget of parameters"):
        compress_with_fewer_tokens(tiny("vit"), [images(6, "vit")], "params=0.6", BEST)
    with pytest.raises(InputError, match="cannot become fewer"):
        compress_with_fewer_tokens(tiny("swin"), [images(6, "swin")], "macs=0.6", BEST)
