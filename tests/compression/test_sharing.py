"""Fewer tokens and smaller layers under one budget."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowrank_vit import analyse, compress_with_fewer_tokens, get_recipe, load, save
from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.prices import price_of
from lowrank_vit.compression.prices.fewer_tokens import FewerTokens
from lowrank_vit.methods.tome import TokenMerging
from lowrank_vit.modules.counting import input_size, multiply_accumulates, parameter_count
from lowrank_vit.objectives import divergences
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.curves import RankPlan
from tests.support.models import ARGUMENTS, images, outputs, tiny

BEST = get_recipe("best").but(refit=False, measured=0)
RULES = {"tome": "r", "evit": "keep"}


def macs(model: nn.Module) -> int:
    size = input_size(model)
    assert size is not None
    return multiply_accumulates(model, size)


@cache
def analysed(*, unseen: bool = True) -> Analysis:
    data = images(12, "vit")
    return analyse(tiny("vit"), data[:6].split(3), BEST, held_out=[data[6:]] if unseen else None)


@pytest.mark.parametrize("pairs", [1, 3])
def test_hidden_units_are_priced_by_the_tokens_that_reach_them(pairs: int) -> None:
    """Nothing is padded in an MLP, so the prices of a whole model are what a forward pass counts."""
    analysis, rule = analysed(), TokenMerging(pairs)
    price = FewerTokens.of(price_of("macs", analysis.dense, analysis.setting), rule)
    curves = price.priced(analysis.priced_losses, analysis.decomposed)
    sizes = {curve.name: place + 9 if curve.name.endswith("hidden") else None for place, curve in enumerate(curves)}
    cut = rule(analysis.resized(RankPlan(sizes)))
    assert (
        price.rest(curves) + sum(curve.cost(sizes[curve.name]) for curve in curves)
        == macs(cut)
        == price.count(analysis.resized(RankPlan(sizes)))
    )
    assert macs(cut) < macs(rule(analysis.model))
    hidden = [curve.dense_cost for curve in curves if curve.name.endswith("hidden")]
    assert hidden[0] > hidden[1]  # later blocks see fewer tokens


@pytest.mark.parametrize("rule", RULES)
def test_the_split_that_is_best_on_unseen_images_keeps_within_the_budget(rule: str, tmp_path: Path) -> None:
    data, model = images(12, "vit"), tiny("vit")
    small, report = compress_with_fewer_tokens(
        model, data[:6].split(3), {"macs": 0.6}, BEST, held_out=[data[6:]], rule=rule
    )
    found: Any = report
    tried = found["shared"]["tried"]
    assert macs(small) <= 0.6 * macs(model)
    assert found["macs"] == {"dense": macs(model), "compressed": macs(small)}
    [divergence] = divergences(Classification(), model, [small], [data[6:]])
    assert divergence == pytest.approx(min(each["divergence"] for each in tried), rel=1e-6)
    assert RULES[rule] not in tried[0]  # all tokens
    assert tried[-1]["parameters"] == parameter_count(model)  # no layer smaller
    kept = [each["parameters"] for each in tried]
    assert kept == sorted(kept)  # the more tokens save, the less layers have to
    assert len(set(kept)) > 2
    save(small, tmp_path / "small", model_args=ARGUMENTS["vit"])
    assert torch.equal(outputs(load(tmp_path / "small"), data), outputs(small, data))
