"""The way through a model step by step, models with much to mend, and what a refit of their outputs leaves."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import Branch, family_of
from lowrank_vit.architectures.step_inputs import enter, run_step
from lowrank_vit.modules.surgery import output_linear
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.runtime.tensors import Spill
from lowrank_vit.stages.correct.measured_losses import Replay
from lowrank_vit.stages.correct.output_refit import OutputRefit
from lowrank_vit.stages.correct.regression import Streams
from tests.support.models import modules_of


class Watched(OutputRefit):
    """Keeps the streams that a branch leaves behind."""

    def _branch(self, old: Branch, new: Branch, streams: Streams, *rest: object) -> float | None:
        ridge = super()._branch(old, new, streams, *rest)
        object.__setattr__(self, "left", list(zip(streams.dense, streams.small, strict=True)))
        return ridge


def halved(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy whose output layers give half of what they gave; and weights that differ by position."""
    small, layers = copy.deepcopy(model), [site.linears[-1].name for site in modules_of(model)]
    for name in layers:
        small.get_submodule(name).weight.data *= 0.5
    return small, {name: torch.arange(1.0, 18, dtype=torch.float64) for name in layers}


def sensitivities_of(analysis: Any) -> dict[str, Tensor]:
    """How much each position counts, by the names of output layers."""
    names = [unit.linears[-1].name for unit in analysis.units]
    return {name: analysis.moments[name].sums["sensitive_tokens"] for name in names}


def check_streams(analysis: Any, small: nn.Module, data: Tensor, size: int) -> None:
    """With nothing gone through twice, what is left after the last branch is what either model has there in the end."""
    sensitivities = sensitivities_of(analysis)
    for name in sensitivities:
        output_linear(small.get_submodule(name)).weight.data *= 0.5  # much to mend
    check_refit(analysis.model, small, sensitivities, data, size)


def check_replay(analysis: Any, objective: Any, data: Tensor, count: int, lost: Callable[[nn.Module], float]) -> None:
    """With one half of a model exchanged in turn, what is replayed is what the whole model loses on so many images."""
    with Spill() as kept:
        replay = Replay(analysis.model, objective, data.split(5), count, kept)
        for curve in analysis.curves:
            plan = RankPlan({each.name: 2 * curve.multiple if each is curve else None for each in analysis.curves})
            small, _ = analysis.apply(plan)
            half = curve.name.rpartition(".")[0]
            found = replay.divergence(half, small.get_submodule(half))
            assert found == pytest.approx(lost(small), rel=1e-3, abs=1e-9)
            assert found > 0


def check_refit(
    model: nn.Module, small: nn.Module, sensitivities: dict[str, Tensor], data: Tensor, size: int, **near: float
) -> None:
    refit, steps = Watched(), family_of(model).steps(model)
    ridges = refit(model, small, sensitivities, data.split(size))
    assert any(ridge is not None for ridge in ridges.values())
    with torch.no_grad():
        given, (x,) = enter(model, steps, [data])
        y = x
        for name, step in steps.items():
            x, y = step(x, **given[name]), small.get_submodule(name)(y, **given[name])
    torch.testing.assert_close(torch.cat([x for x, _ in refit.left]), x, **near)
    torch.testing.assert_close(torch.cat([y for _, y in refit.left]), y, **near)


@torch.no_grad()
def check_walk(model: nn.Module, data: Tensor, outputs: Tensor) -> None:
    """Go through the steps, with what the model gives its blocks beside the stream; some windows may be padded."""
    family = family_of(model)
    steps = family.steps(model)
    given, inputs = enter(model, steps, [data[:2], data[2:]])
    x = torch.cat(list(inputs))
    for name, step in steps.items():
        after = source = x
        branches = family.branches(step)
        for branch in branches:
            source = source if branch.beside else after
            added, made = branch.with_inputs(source, **given[name])
            after, tokens = after + added, branch.tokens(added)
            torch.testing.assert_close(branch.stream(tokens, added.shape), added)
            if not branch.normed:
                there = branch.tokens(torch.ones_like(added))
                expected = branch.output_layer(made).reshape(tokens.shape) * there
                torch.testing.assert_close(tokens, expected if branch.scale is None else branch.scale * expected)
        x = run_step(step, x, given[name])
        torch.testing.assert_close(after if branches else x, x)
    torch.testing.assert_close(family.head(model, x), outputs)
