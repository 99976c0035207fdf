"""Attention pooling: queries that are the same for all images, values and an MLP that shrink as those of blocks do."""

import copy
from functools import cache

import pytest
import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from lowrank_vit import Analysis, analyse, get_recipe
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count
from lowrank_vit.records.curves import RankPlan
from tests.support.kinds import KINDS
from tests.support.models import outputs

BEST = get_recipe("best")
PLAIN = BEST.but(refit=False, measured=0)
QUERY_KEY, VALUE, HIDDEN = (f"attn_pool.{unit}" for unit in ("query_key", "value", "mlp.hidden"))
POOLS = {  # of a ViT of width 32 with 16 tokens
    "siglip": {},
    "two queries": {"latent_len": 2, "pool_type": "avg"},
    "position embedding": {"pos_embed": "abs", "feat_size": 16},
    "no bias": {"qkv_bias": False},
}
pools = pytest.mark.parametrize("kind", POOLS)


def pooled(**arguments: object) -> nn.Module:
    """A ViT with attention pooling in which every part matters, float64."""
    model = KINDS["attention pooling"].make()
    model.attn_pool = AttentionPoolLatent(32, num_heads=4, norm_layer=nn.LayerNorm, **arguments).double()
    for parameter in model.attn_pool.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


@cache
def analysed(kind: str) -> tuple[Analysis, Tensor]:
    data = KINDS["attention pooling"].images(12)
    return analyse(pooled(**POOLS[kind]), [data[:6], data[6:]], PLAIN, device="cpu"), data


def at_sizes(analysis: Analysis, **sizes: int) -> nn.Module:
    """The model with the pooling at the given sizes; all the rest is dense."""
    plan: dict[str, int | None] = dict.fromkeys(curve.name for curve in analysis.curves)
    whole = {curve.name: len(curve.errors) - 1 for curve in analysis.curves}
    given = {QUERY_KEY: sizes.get("query_key", whole[QUERY_KEY]), VALUE: sizes.get("value", whole[VALUE])}
    return analysis.apply(RankPlan({**plan, **given}))[0]


@pools
class TestPooling:
    def test_a_direction_for_each_query_is_all_of_the_logits(self, kind: str) -> None:
        """The model as it was, without most of the weights of queries and keys."""
        analysis, data = analysed(kind)
        whole = at_sizes(analysis)
        torch.testing.assert_close(outputs(whole, data), outputs(analysis.model, data), rtol=1e-9, atol=1e-9)
        heads, queries, bias = 4, POOLS[kind].get("latent_len", 1), kind != "no bias"
        saved = 2 * 32 * (32 + bias) - heads * queries * (32 + queries) + 32 * bias
        assert parameter_count(analysis.model) - parameter_count(whole) == saved

    def test_lost_logits_are_those_of_projected_keys(self, kind: str) -> None:
        """``V V^T k`` in the dense module, V: the kept directions of a head's keys."""
        analysis, data = analysed(kind)
        logits = analysis.parts["attn_pool"][QUERY_KEY]
        kept = logits.units.kept(2)
        truth = copy.deepcopy(analysis.model)
        directions = torch.block_diag(*logits.key)[:, kept]
        rows = truth.attn_pool.kv.weight.data
        rows[:32] = directions @ directions.T @ rows[:32]
        if truth.attn_pool.kv.bias is not None:
            truth.attn_pool.kv.bias.data[:32] = 0  # the softmax ignores it
        expected, dense = outputs(truth, data), outputs(analysis.model, data)
        torch.testing.assert_close(outputs(at_sizes(analysis, query_key=2), data), expected, rtol=1e-9, atol=1e-9)
        assert (expected - dense).norm() > 1e-4 * dense.norm()

    def test_costs_are_those_of_the_module(self, kind: str) -> None:
        analysis, data = analysed(kind)
        small, curves = at_sizes(analysis, query_key=2, value=12), {curve.name: curve for curve in analysis.curves}
        sizes = ((curves[QUERY_KEY], 2), (curves[VALUE], 12))
        saved = sum(curve.dense_cost - curve.cost(size) for curve, size in sizes)
        assert parameter_count(analysis.model) - parameter_count(small) == saved
        macs = [multiply_accumulates(model, data.shape[1:]) for model in (analysis.model, small)]
        assert macs[0] - macs[1] == sum(c.dense.macs - c.fixed.macs - size * c.unit.macs for c, size in sizes)


def test_a_heads_logits_lose_what_they_say() -> None:
    """``1/2 E[(dL/da)^2]``, a: what scales the logits of a head, by automatic differentiation of every image's probe."""
    analysis, data = analysed("siglip")
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
