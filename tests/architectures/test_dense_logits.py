"""Attention in part: queries and keys that stay as they are, values that lose directions, queries of a pooling."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from lowrank_vit import Analysis, analyse, get_recipe
from lowrank_vit.architectures.base import family_of
from lowrank_vit.architectures.step_inputs import enter
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.factors import InputSubset
from lowrank_vit.records.sites import VALUE, AttentionSite
from lowrank_vit.stages.correct.output_refit import OutputRefit
from tests.support.cases import few
from tests.support.kinds import KINDS
from tests.support.models import outputs, stirred
from tests.support.refits import check_streams, check_walk, sensitivities_of

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
partial = pytest.mark.parametrize("kind", few(REASONS))
walked = pytest.mark.parametrize("kind", few(WALKED, 3))


@cache
def analysed(kind: str) -> tuple[Analysis, Tensor]:
    """What is known of a model in which all parts matter much, and its images."""
    model, data = stirred(KINDS[kind].make(), 0.2), KINDS[kind].images(12)
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
        analysis, data = analysed(kind)
        check_streams(analysis, at_sizes(analysis, 0.4), data, 6)


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
    OutputRefit(ridges=(0.0,), sensitivity=0.0)(model, small, sensitivities_of(analysis), [data])
    scale = float(truth.abs().max())
    torch.testing.assert_close(layer.weight - before, truth[:-1].T, atol=1e-3 * scale, rtol=1e-3)


WHOLE = get_recipe("best")
PLAIN = WHOLE.but(refit=False, measured=0)
QUERY_KEY, POOL_VALUE, HIDDEN = (f"attn_pool.{unit}" for unit in ("query_key", "value", "mlp.hidden"))
POOLS = {  # of a ViT of width 32 with 16 tokens
    "siglip": {},
    "two queries": {"latent_len": 2, "pool_type": "avg"},
    "position embedding": {"pos_embed": "abs", "feat_size": 16},
    "no bias": {"qkv_bias": False},
}
pools = pytest.mark.parametrize("kind", few(POOLS))


def pooled(**arguments: object) -> nn.Module:
    """A ViT with attention pooling in which every part matters, float64."""
    model = KINDS["attention pooling"].make()
    model.attn_pool = stirred(AttentionPoolLatent(32, num_heads=4, norm_layer=nn.LayerNorm, **arguments).double(), 0.3)
    return model.eval()


@cache
def pooled_analysis(kind: str) -> tuple[Analysis, Tensor]:
    data = KINDS["attention pooling"].images(12)
    return analyse(pooled(**POOLS[kind]), [data[:6], data[6:]], PLAIN, device="cpu"), data


def pooled_at(analysis: Analysis, **sizes: int) -> nn.Module:
    """The model with the pooling at the given sizes; all the rest is dense."""
    plan: dict[str, int | None] = dict.fromkeys(curve.name for curve in analysis.curves)
    whole = {curve.name: len(curve.errors) - 1 for curve in analysis.curves}
    given = {QUERY_KEY: sizes.get("query_key", whole[QUERY_KEY]), POOL_VALUE: sizes.get("value", whole[POOL_VALUE])}
    return analysis.apply(RankPlan({**plan, **given}))[0]


@pools
class TestPooling:
    def test_a_direction_for_each_query_is_all_of_the_logits(self, kind: str) -> None:
        """The model as it was, without most of the weights of queries and keys."""
        analysis, data = pooled_analysis(kind)
        whole = pooled_at(analysis)
        torch.testing.assert_close(outputs(whole, data), outputs(analysis.model, data), rtol=1e-9, atol=1e-9)
        heads, queries, bias = 4, POOLS[kind].get("latent_len", 1), kind != "no bias"
        saved = 2 * 32 * (32 + bias) - heads * queries * (32 + queries) + 32 * bias
        assert parameter_count(analysis.model) - parameter_count(whole) == saved

    def test_lost_logits_are_those_of_projected_keys(self, kind: str) -> None:
        """``V V^T k`` in the dense module, V: the kept directions of a head's keys."""
        analysis, data = pooled_analysis(kind)
        logits = analysis.parts["attn_pool"][QUERY_KEY]
        kept = logits.units.kept(2)
        truth = copy.deepcopy(analysis.model)
        directions = torch.block_diag(*logits.key)[:, kept]
        rows = truth.attn_pool.kv.weight.data
        rows[:32] = directions @ directions.T @ rows[:32]
        if truth.attn_pool.kv.bias is not None:
            truth.attn_pool.kv.bias.data[:32] = 0  # the softmax ignores it
        expected, dense = outputs(truth, data), outputs(analysis.model, data)
        torch.testing.assert_close(outputs(pooled_at(analysis, query_key=2), data), expected, rtol=1e-9, atol=1e-9)
        assert (expected - dense).norm() > 1e-4 * dense.norm()

    def test_costs_are_those_of_the_module(self, kind: str) -> None:
        analysis, data = pooled_analysis(kind)
        small, curves = pooled_at(analysis, query_key=2, value=12), {curve.name: curve for curve in analysis.curves}
        sizes = ((curves[QUERY_KEY], 2), (curves[POOL_VALUE], 12))
        saved = sum(curve.dense_cost - curve.cost(size) for curve, size in sizes)
        assert parameter_count(analysis.model) - parameter_count(small) == saved
        macs = [multiply_accumulates(model, data.shape[1:]) for model in (analysis.model, small)]
        assert macs[0] - macs[1] == sum(c.dense.macs - c.fixed.macs - size * c.unit.macs for c, size in sizes)


def test_a_heads_logits_lose_what_they_say() -> None:
    """``1/2 E[(dL/da)^2]``, a: what scales the logits of a head, by automatic differentiation of every image's probe."""
    analysis, data = pooled_analysis("siglip")
    model, objective = analysis.model, analysis.recipe.objective
    slopes = []
    for image in data.split(1):
        scale = torch.ones(4, dtype=torch.float64, requires_grad=True)

        def scaled(module: nn.Module, inputs: object, output: Tensor, scale: Tensor = scale) -> Tensor:
            return torch.cat([output[..., :32] * scale.repeat_interleave(8), output[..., 32:]], -1)

        hook = model.attn_pool.kv.register_forward_hook(scaled)
        probe = objective.probe(model(image), image, analysis.services.seed)
        hook.remove()
        slopes.append(torch.autograd.grad(probe, scale)[0])
    gains = 0.5 * torch.stack(slopes).square().mean(0)
    units = analysis.parts["attn_pool"][QUERY_KEY].units
    torch.testing.assert_close(units.order, gains.argsort(descending=True))
    torch.testing.assert_close(-units.loss.diff(), gains[units.order], rtol=1e-4, atol=1e-12)
