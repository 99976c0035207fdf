"""Recipes that look at images once a size is chosen: what compress makes at known sizes, and close to it between them."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import analyse, load, save
from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.nested import unpack
from lowrank_vit.compression.nested.opened import Opened
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.storage.folder import nested_entry
from tests.support import models
from tests.support.kinds import KINDS
from tests.support.models import ARGUMENTS, outputs

pytestmark = pytest.mark.slow
WRITTEN = 0.35
PLAIN = ("vit", "swin")
OTHERS = ("q and k norm", "swiglu", "layer scale", "post norm")


def made(kind: str) -> tuple[nn.Module, dict[str, Any]]:
    """A model and the arguments that it is saved with."""
    if kind in PLAIN:
        return models.tiny(kind), ARGUMENTS[kind]
    return KINDS[kind].make().float(), KINDS[kind].arguments


def images(kind: str, count: int, seed: int = 1) -> Tensor:
    if kind in PLAIN:
        return models.images(count, kind, seed)
    return KINDS[kind].images(count).float()


@cache
def nested(kind: str) -> tuple[Analysis, Path]:
    """An analysis, and the folder that was written from it."""
    model, arguments = made(kind)
    held_out = [images(kind, 6, 7)]
    analysis = analyse(model, [images(kind, 16)], "best", held_out=held_out)
    folder = Path(mkdtemp()) / "small"
    save(analysis.compress(WRITTEN)[0], folder, model_args=arguments, nested=analysis)
    return analysis, folder


@cache
def opened() -> Opened:
    analysis = unpack(nested("vit")[1], torch.device("cpu"))
    assert isinstance(analysis, Opened)
    return analysis


@pytest.mark.parametrize("kind", [*PLAIN, *OTHERS])
def test_at_a_size_that_was_known_it_is_what_compress_makes(kind: str) -> None:
    analysis, folder = nested(kind)
    largest = nested_entry(folder)["largest_reduction"]
    for size in [share for share in (WRITTEN, 0.2, 0.6) if share <= largest]:
        small, (expected, report) = load(folder, reduction=size), analysis.compress(size)
        assert torch.allclose(outputs(small, images(kind, 4, 3)), outputs(expected, images(kind, 4, 3)), atol=1e-4)
        told = small.compression_report
        for part in ("params", "macs", "recipe_fields", "budget", "left_dense", "protocol"):
            assert told[part] == report[part], part
        assert [layer["rank"] for layer in told["layers"]] == [layer["rank"] for layer in report["layers"]]
        for own, other in zip(told["layers"], report["layers"], strict=True):
            for name in ("relative_error", "relative_error_held_out"):
                assert own[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6)


def test_between_two_sizes_a_change_is_between_theirs() -> None:
    """At one plan, so that the directions are the same, the output's weight moves linearly with the place between."""
    analysis = opened()
    larger, smaller = analysis.sizes[1:3]
    ends = [analysis._shares(size.ranks) for size in (larger, smaller)]
    assert ends == [[(larger, 1.0)], [(smaller, 1.0)]]
    plan = analysis.plan(0.25)
    (one, first), (other, second) = analysis._shares(plan.ranks)
    spent = [
        sum(curve.cost(size[curve.name]) for curve in analysis.curves) for size in (one.ranks, plan.ranks, other.ranks)
    ]
    assert spent[0] > spent[1] > spent[2]
    assert second == pytest.approx((spent[0] - spent[1]) / (spent[0] - spent[2]))
    assert first + second == pytest.approx(1)
    weights = []
    for shares in ([(one, 1.0)], [(other, 1.0)], [(one, first), (other, second)]):
        small = analysis.resized(plan)
        object.__setattr__(analysis, "_shares", lambda ranks, shares=shares: shares)
        analysis.correct(small, plan.ranks)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in small.parameters()]))
    object.__delattr__(analysis, "_shares")
    assert torch.allclose(first * weights[0] + second * weights[1], weights[2], atol=1e-6)
    assert not torch.allclose(weights[0], weights[1], atol=1e-4)


def test_measured_losses_are_interpolated_by_their_ratio() -> None:
    """Twice the predicted loss at one count and eight times at another: four times in the middle, in logarithms."""
    analysis = opened()
    name = next(curve.name for curve in analysis.curves if curve.name.endswith("hidden"))
    curve = next(curve for curve in analysis.curves if curve.name == name)
    sizes = []
    for size, (count, factor) in zip(analysis.sizes[:2], [(30, 2.0), (10, 8.0)], strict=True):
        points = {**size.points, name: (count, factor * curve.error(count))}
        sizes.append(type(size)(size.ranks, points, size.changes))
    made_up = Opened(**{**vars_of(analysis), "sizes": sizes})
    for count, factor in [(30, 2.0), (20, 4.0), (10, 8.0), (5, 8.0)]:
        plan = RankPlan({**dict.fromkeys(each.name for each in analysis.curves), name: count})
        at, loss = made_up.measure(plan, [], 0)[name]
        assert at == count
        assert loss == pytest.approx(factor * curve.error(count))


def vars_of(analysis: Opened) -> dict[str, Any]:
    return {name: getattr(analysis, name) for name in type(analysis).__dataclass_fields__}


def test_any_budget_opens_it_and_no_image_is_seen() -> None:
    _, folder = nested("vit")
    for budget, cost in [("macs=0.6", "macs"), ({"bytes": 0.6}, "bytes"), ({"params": "5k"}, "parameters")]:
        entry = load(folder, budget=budget).compression_report["budget"]
        assert entry["cost"] == cost
        assert entry["counted"] <= entry["limit"]
    assert opened().images.batches == ()


def first(tensors: dict[str, Tensor], kind: str) -> str:
    return next(name for name in tensors if name.startswith(f"{kind}|"))
