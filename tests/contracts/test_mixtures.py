"""Units whose sizes can be searched: the dense model with the parameters of one size is the folded model."""

import pytest
import timm
import torch
from torch import nn

from lowrank_vit import analyse, get_recipe
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.stages.search.gates import mixed_outputs
from tests.support.cases import few, in_turn
from tests.support.models import KINDS, NAMES, VIT, images, outputs, stirred, tiny

PARTS = {"measured": False, "refit": False, "sense": False}  # what follows the cut, or takes long
RECIPES = ("comcat", "heads", "exact", "corp", "vbp", "vtp-taylor", "ssp")


def halves(curve: ErrorCurve) -> int | None:
    """A size in the middle, of each unit."""
    return curve.ranks[len(curve.ranks) // 2] if curve.ranks else None


def differences(model: nn.Module, data: torch.Tensor, recipe: str) -> dict[str, float]:
    """The largest difference of the outputs between the gated dense model and the folded one, at three plans."""
    analysis = analyse(model, data.split(8), get_recipe(recipe).but(**PARTS))
    plans = {"half": {c.name: halves(c) for c in analysis.curves}, "dense": {c.name: None for c in analysis.curves}}
    alternating = [c.name for c in analysis.curves][::2]
    plans["some"] = {name: size if name in alternating else None for name, size in plans["half"].items()}
    found = {}
    for title, ranks in plans.items():
        mixtures, shares = [], []
        for decomposed in analysis.decomposed:
            for curve in analysis.curves_by_unit[decomposed.name]:
                mixtures.append(decomposed.mixture(curve.name, [*curve.ranks[:1], ranks[curve.name]]))
                shares.append(torch.tensor([0.0] * len(curve.ranks[:1]) + [1.0], dtype=torch.float64))
        gated = mixed_outputs(analysis.model, mixtures, shares, data)
        folded, _ = analysis.apply(RankPlan(ranks))
        found[title] = float((gated - outputs(folded, data)).abs().max())
    return found


@pytest.mark.parametrize(("kind", "recipe"), few(in_turn(KINDS, RECIPES), 4))
def test_a_share_of_one_is_the_folded_model(recipe: str, kind: str) -> None:
    found = differences(tiny(kind).double(), images(16, kind).double(), recipe)
    assert set(found) == {"half", "dense", "some"}
    assert max(found.values()) <= 1e-6, found


def test_without_biases() -> None:
    model, data = tiny().double(), images(16).double()
    analysis = analyse(model, data.split(8), get_recipe("comcat").but(**{"attention.biases": False}))
    plan = {curve.name: len(curve.errors) - 1 if "attn" in curve.name else None for curve in analysis.curves}
    folded, _ = analysis.apply(RankPlan(plan))
    bare = tiny().double()
    for block in bare.blocks:
        for layer in (block.attn.qkv, block.attn.proj):
            layer.bias.data.zero_()
    torch.testing.assert_close(outputs(folded, data), outputs(bare, data), rtol=1e-8, atol=1e-8)
    parts = [(each, curve.name) for each in analysis.decomposed for curve in each.curves() if "attn" in curve.name]
    mixtures = [decomposed.mixture(name, [plan[name]]) for decomposed, name in parts]
    gated = mixed_outputs(analysis.model, mixtures, [torch.ones(1, dtype=torch.float64)] * len(mixtures), data)
    torch.testing.assert_close(gated, outputs(bare, data), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("family", few(["plain", "beit"], 1))
def test_biases_of_other_names_and_none(family: str) -> None:
    """BEiT has its queries' biases beside the layer; a model without biases gets those that take up lost means."""
    torch.manual_seed(0)
    name, arguments = (
        ("beit_base_patch16_224", VIT) if family == "beit" else (NAMES["vit"][0], {**VIT, "proj_bias": False})
    )
    model = stirred(timm.create_model(name, **arguments), 0.2).double().eval()
    for recipe in ("comcat", "heads"):
        found = differences(model, images(16).double(), recipe)
        assert max(found.values()) <= 1e-6, found
