"""Attention in part: queries and keys that stay as they are, values that lose directions."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import Analysis, analyse, get_recipe
from lowrank_vit.architectures.base import Branch, family_of
from lowrank_vit.architectures.step_inputs import enter
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count
from lowrank_vit.modules.surgery import output_linear
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.factors import InputSubset
from lowrank_vit.records.sites import VALUE, AttentionSite
from lowrank_vit.stages.correct.output_refit import OutputRefit
from lowrank_vit.stages.correct.regression import Streams
from tests.support.cases import few
from tests.support.kinds import KINDS
from tests.support.models import outputs
from tests.support.walks import check_walk

REASONS = {  # why queries and keys stay dense
    "q and k norm": "normalised",
    "relative position mlp": "compared with biases by position",
    "post norm": "compared with biases by position",
    "cait": "mixed across heads",
    "eva02": "rotated by their positions",
    "eva02, apart": "rotated by their positions",
    "rotary vit": "rotated by their positions",
    "mixed rotation": "rotated by their positions",
    "dinov3": "rotated by their positions",
    "perception encoder": "rotated by their positions",
    "swin v2": "compared by their cosine",
}
WALKED = [*REASONS, "parallel things", "beit", "beit, shared"]
BEST = get_recipe("heads").but(measured=0)
partial = pytest.mark.parametrize("kind", few(REASONS, 4))
walked = pytest.mark.parametrize("kind", few(WALKED, 4))


@cache
def analysed(kind: str) -> tuple[Analysis, Tensor]:
    """What is known of a model in which all parts matter much, and its images."""
    model, data = KINDS[kind].make(), KINDS[kind].images(12)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return analyse(model, [data[:6], data[6:]], BEST, device="cpu"), data


def values_of(analysis: Analysis) -> dict[str, tuple[AttentionSite, InputSubset]]:
    """Site and values of every attention module whose logits stay dense, by the unit's name."""
    sites = [unit.site for unit in analysis.units if getattr(unit.site, "dense_logits", "")]
    return {f"{site.name}.{VALUE}": (site, analysis.parts[site.name][f"{site.name}.{VALUE}"]) for site in sites}


def at_sizes(analysis: Analysis, share: float) -> nn.Module:
    """The model with a share of its values, and no refit; all the rest is dense."""
    values = values_of(analysis)
    plan: dict[str, int | None] = dict.fromkeys(curve.name for curve in analysis.curves)
    for name, (_, part) in values.items():
        plan[name] = int(share * len(part.units.order))
    return replace(analysis, recipe=BEST.but(refit=False)).apply(RankPlan(plan))[0]


@partial
class TestValuesAlone:
    def test_all_directions_are_the_model_as_it_was(self, kind: str) -> None:
        analysis, data = analysed(kind)
        whole = at_sizes(analysis, 1.0)
        assert parameter_count(whole) == parameter_count(analysis.model)
        torch.testing.assert_close(outputs(whole, data), outputs(analysis.model, data), rtol=1e-9, atol=1e-9)

    def test_lost_values_are_those_of_a_dense_projection(self, kind: str) -> None:
        """``W^ = B (B^T C B)^-1 B^T C W`` in the dense module, its mean loss in the bias: no narrow layer, all float64."""
        analysis, data = analysed(kind)
        small, truth = at_sizes(analysis, 0.4), copy.deepcopy(analysis.model)
        for site, part in values_of(analysis).values():
            assert part.basis is not None
            whole = torch.block_diag(*part.basis)
            inverse, kept = torch.linalg.inv(whole), part.units.kept(int(0.4 * len(whole)))
            spread, chosen = inverse.T @ part.covariance @ inverse, whole[:, kept]
            proj = truth.get_submodule(site.proj.name)
            weight = proj.weight.detach().T
            inner = torch.linalg.solve(chosen.T @ spread @ chosen, chosen.T @ spread @ weight)
            lost = weight - chosen @ inner
            proj.weight.data -= lost.T
            proj.bias.data += part.mean @ lost
        expected, dense = outputs(truth, data), outputs(analysis.model, data)
        torch.testing.assert_close(outputs(small, data), expected, rtol=1e-8, atol=1e-8)
        assert (expected - dense).norm() > 1e-4 * dense.norm()

    def test_costs_are_those_of_the_module(self, kind: str) -> None:
        """Of parameters to the last one; the multiply-accumulates of the layers, as attention's own stay."""
        analysis, data = analysed(kind)
        small, curves = at_sizes(analysis, 0.4), {curve.name: curve for curve in analysis.curves}
        for name, (_, part) in values_of(analysis).items():
            curve, count = curves[name], int(0.4 * len(part.units.order))
            saved = curve.dense_cost - curve.cost(count)
            sizes = [parameter_count(m.get_submodule(name.removesuffix(".value"))) for m in (analysis.model, small)]
            assert sizes[0] - sizes[1] == saved > 0
        macs = [multiply_accumulates(model, data.shape[1:]) for model in (analysis.model, small)]
        units = [curves[name] for name in values_of(analysis)]
        lost = sum(c.dense.macs - c.fixed.macs - int(0.4 * (len(c.errors) - 1)) * c.unit.macs for c in units)
        assert macs[0] - macs[1] == lost


@walked
class TestWalk:
    def test_steps_are_the_whole_way(self, kind: str) -> None:
        model, data = KINDS[kind].make(), KINDS[kind].images(3)
        check_walk(model, data, outputs(model, data))

    def test_the_refit_leaves_the_streams_of_both_models(self, kind: str) -> None:
        """After the last branch, with nothing gone through twice: what either model, as it is in the end, has there."""
        analysis, data = analysed(kind)
        model, small = analysis.model, at_sizes(analysis, 0.4)
        sensitivities = {}
        for unit in analysis.units:
            name = unit.linears[-1].name
            sensitivities[name] = analysis.moments[name].sums["sensitive_tokens"]
            output_linear(small.get_submodule(name)).weight.data *= 0.5  # much to mend
        refit = Watched()
        ridges = refit(model, small, sensitivities, [data[:6], data[6:]])
        assert any(ridge is not None for ridge in ridges.values())
        steps = family_of(model).steps(model)
        with torch.no_grad():
            given, inputs = enter(model, steps, [data])
            (x,) = inputs
            y = x
            for name, step in steps.items():
                x, y = step(x, **given[name]), small.get_submodule(name)(y, **given[name])
        torch.testing.assert_close(torch.cat([x for x, _ in refit.left]), x)
        torch.testing.assert_close(torch.cat([y for _, y in refit.left]), y)


class Watched(OutputRefit):
    """Keeps the streams that a branch leaves behind."""

    def _branch(self, old: Branch, new: Branch, streams: Streams, *rest: object) -> float | None:
        ridge = super()._branch(old, new, streams, *rest)
        object.__setattr__(self, "left", list(zip(streams.dense, streams.small, strict=True)))
        return ridge


@pytest.mark.parametrize("kind", ["swin v2", "post norm"])
def test_behind_a_norm_the_layers_own_output_is_fitted(kind: str) -> None:
    """By dense least squares: what the first attention's output layer lacks, on its own inputs."""
    analysis, data = analysed(kind)
    model, small = analysis.model, at_sizes(analysis, 0.4)
    family, steps = family_of(model), family_of(model).steps(model)
    name, block = next((name, step) for name, step in steps.items() if family.branches(step))
    old, new = family.branches(block)[0], family.branches(small.get_submodule(name))[0]
    layer = new.output_layer
    layer.weight.data *= 0.5  # much to mend
    before = layer.weight.clone()
    with torch.no_grad():
        given, inputs = enter(model, steps, [data])
        (x,) = inputs
        for earlier in list(steps)[: list(steps).index(name)]:
            x = steps[earlier](x)
        (_, seen), (_, h) = old.with_inputs(x, **given[name]), new.with_inputs(x, **given[name])
        lacking = (old.output_layer(seen) - layer(h)).flatten(0, -2)
    ones = torch.cat([h.flatten(0, -2), torch.ones(len(lacking), 1)], 1)
    truth = torch.linalg.lstsq(ones, lacking).solution
    sensitivities = {unit.linears[-1].name: analysis.moments[unit.linears[-1].name] for unit in analysis.units}
    tokens = {name: moments.sums["sensitive_tokens"] for name, moments in sensitivities.items()}
    OutputRefit(ridges=(0.0,), sensitivity=0.0)(model, small, tokens, [data])
    scale = float(truth.abs().max())
    torch.testing.assert_close(layer.weight - before, truth[:-1].T, atol=1e-3 * scale, rtol=1e-3)
