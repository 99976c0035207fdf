"""Pairs of tokens planned by block: the cheapest path, the exact last block, the refit behind merged tokens."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_vit import InputError, analyse, compress, fewer_tokens, get_recipe
from lowrank_vit.compression.token_plan import BlockCosts, TokenPlanner, cheapest_path, filled
from lowrank_vit.modules.counting import input_size, multiply_accumulates
from lowrank_vit.objectives import divergences
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.stages.correct.output_refit import OutputRefit
from lowrank_vit.stages.tokens.merging import PlannedMerging
from tests.support.models import images, outputs, tiny

HEADS = get_recipe("heads").but(refit=False, measured=0)


def macs(model: Any) -> int:
    size = input_size(model)
    assert size is not None
    return multiply_accumulates(model, size)


@pytest.mark.parametrize("rate", [0.0, 1e-4, 1e-3, 1e-2, 1.0])
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


@pytest.mark.parametrize("smaller", [False, True])
def test_the_last_block_computes_what_the_head_reads_and_nothing_changes(smaller: bool) -> None:
    model, data = tiny("vit").double(), images(6, "vit").double()
    model = compress(model, data.split(3), HEADS, 0.3)[0] if smaller else model
    small = fewer_tokens(model, "merge")
    torch.testing.assert_close(outputs(small, data), outputs(model, data), rtol=1e-10, atol=1e-10)
    assert macs(small) < macs(model)


def test_the_planned_pairs_keep_within_their_limit() -> None:
    analysis = analyse(tiny("vit"), images(16, "vit").split(8), HEADS, device="cpu")
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
