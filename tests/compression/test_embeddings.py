"""Patch and position embeddings as units, and folded norms: budgets, losses, refit, and what is done with the model."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lowrank_vit import get_recipe
from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.compress import analyse
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count, saved_bytes
from lowrank_vit.objectives import divergences
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.curves import RankPlan
from tests.support.models import model_and_images, outputs

UNITS = {"patches": "two_sided", "positions": "kronecker"}
ALL = get_recipe("best").but(**UNITS, folded=True)
PATCHES, POSITIONS = "patch_embed.proj.linear", "pos_embed"


def analysed(kind: str = "vit", **changes: Any) -> tuple[Analysis, torch.Tensor]:
    model, data = model_and_images(kind)
    return analyse(model, [data], ALL.but(**changes), device="cpu"), data


def plan(analysis: Analysis, **sizes: int) -> RankPlan:
    """Everything dense but some units."""
    return RankPlan({curve.name: sizes.get(curve.name) for curve in analysis.curves})


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_at_full_size_nothing_is_lost(kind: str) -> None:
    analysis, data = analysed(kind, refit=False, measured=0)
    full = {curve.name: len(curve.errors) - 1 for curve in analysis.curves}
    assert {PATCHES, POSITIONS} & set(full) == ({PATCHES, POSITIONS} if kind == "vit" else {PATCHES})
    small = analysis.resized(RankPlan(full))
    torch.testing.assert_close(outputs(small, data), outputs(analysis.dense, data), rtol=1e-8, atol=1e-8)
    whole = analysis.resized(plan(analysis))
    torch.testing.assert_close(outputs(whole, data), outputs(analysis.dense, data), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("budget", "count"),
    [
        ({"params": 0.6}, parameter_count),
        ({"macs": 0.7}, lambda model: multiply_accumulates(model, (1, 8, 8))),
        ({"bytes": 0.7}, lambda model: saved_bytes(model, torch.float64)),
    ],
)
@pytest.mark.parametrize("changes", [{}, {"pivoted": True}])
def test_budgets_are_kept(budget: dict[str, float], count: Any, changes: dict[str, Any]) -> None:
    analysis, _ = analysed(measured=0, refit=False, **changes)
    small, report = analysis.compress(budget)
    (cost, share), whole = next(iter(budget.items())), count(analysis.dense)
    assert (share - 0.08) * whole <= count(small) <= share * whole
    told = {"params": "params", "macs": "macs", "bytes": "weights_bytes"}[cost]
    sizes = report[told]  # type: ignore[literal-required]
    assert (sizes["dense"], sizes["compressed"]) == (whole, count(small))
    for layer in report["layers"]:
        beside = 16 if layer["name"] == PATCHES else 0  # a bias is not compressed
        assert layer["params"] + beside == parameter_count(small.get_submodule(layer["name"]))


def test_the_refit_sees_what_smaller_embeddings_give() -> None:
    """With nothing else reduced, the first outputs make up for a part of what the embeddings have lost."""
    analysis, data = analysed(measured=0)
    cut = plan(analysis, **{PATCHES: 1, POSITIONS: 1})
    models = [replace(analysis, recipe=analysis.recipe.but(refit=refit)).apply(cut)[0] for refit in (False, True)]
    before, after = divergences(Classification(), analysis.dense, models, [data])
    assert after < 0.95 * before
