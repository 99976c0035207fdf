"""Algorithm 1 at the real shapes of the paper's models, where the mean image caps the ranks far below break-even."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch

from lowrank_vit.architectures.linears import find_sites
from lowrank_vit.methods.azizi import GradualReduction
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.records.sites import Site

SWIN = "swin_base_patch4_window7_224"
MODELS = ("deit_base_patch16_224", "vit_large_patch16_224", SWIN)
SWIN_TOKENS = {"layers.0": 56 * 56, "layers.1": 28 * 28, "layers.2": 14 * 14, "layers.3": 7 * 7}  # of an image
CASES = [(name, reduction) for name in MODELS for reduction in (0.4, 0.5)]


@cache
def shapes(name: str) -> tuple[int, list[Site]]:
    """Parameters of the whole model, and its layers; nothing is in memory."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    return parameter_count(model), find_sites(model)


def tokens(name: str, site: Site) -> int:
    """Rows of the mean image: the tokens of an image, as the layer has them."""
    return SWIN_TOKENS[site.name[:8]] if name == SWIN else 197


def curves(name: str, seed: int, unseen: bool) -> list[ErrorCurve]:
    """Random falling spectra up to the cap, and what is unseen there: nothing, as (6) has it, or a random share."""
    generator, found = torch.Generator().manual_seed(seed), []
    for site in shapes(name)[1]:
        cap = min(tokens(name, site), site.full_rank)
        steepness = 1 + 4 * float(torch.rand((), generator=generator))
        spectrum = torch.arange(1, cap + 1, dtype=torch.float64) ** -steepness
        tail = torch.cat([spectrum.flip(0).cumsum(0).flip(0), torch.zeros(1)]) / spectrum.sum()
        rest = 0.5 * float(torch.rand((), generator=generator)) if unseen else 0.0
        n, d = site.in_features, site.out_features
        curve = ErrorCurve.in_parameters(site.name, tail + rest, n + d, n * d, full_rank=site.full_rank)
        found.append(curve)
    return found


def plan(name: str, reduction: float, seed: int, *, unseen: bool, start: str = "factored") -> RankPlan:
    total, sites = shapes(name)
    budget = int(total * (1 - reduction)) - (total - sum(site.parameters for site in sites))
    given = curves(name, seed, unseen)
    made = GradualReduction(start=start)(given, budget)
    spent = sum(curve.cost(made.ranks[curve.name]) for curve in given)
    assert spent <= budget
    return made


@pytest.mark.parametrize(("name", "reduction"), CASES)
def test_what_is_unseen_gives_the_algorithm_a_say(name: str, reduction: float) -> None:
    """Every step compares losses above zero, other losses make another plan, and 500 iterations reach the target."""
    one, other = (plan(name, reduction, seed, unseen=True) for seed in (0, 1))
    assert all(step["loss"] > 0 for step in one.trajectory)
    assert len(one.trajectory) <= 500
    assert one.ranks != other.ranks
