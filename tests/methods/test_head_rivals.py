"""Choices of heads, of dimensions of heads, and of hidden units: dense float64 truths, and worked by hand."""

import pytest
import torch

from lowrank_vit.compression.recipes import get_recipe
from lowrank_vit.linalg.elimination import oracle_shrinkage
from lowrank_vit.methods.comcat import HeadProducts, product_bases
from lowrank_vit.methods.corp import ActiveEnergy, Coordinates
from lowrank_vit.methods.s2vite import AttentionSalience
from lowrank_vit.methods.vbp import Variance
from lowrank_vit.methods.vtp import FirstOrderUnits, FirstOrderValues
from lowrank_vit.records.factors import Directions
from lowrank_vit.records.moments import Moments
from tests.support.layer import ATTENTION, HEADS, INNER, MLP, WIDTH, N, normal, sample

NOTHING = Moments(1, 1, {"input_sum": torch.zeros(1)})
MADE = normal(N, INNER, seed=3).double(), normal(INNER, seed=4).double()


def test_scores_by_hand() -> None:
    scores = torch.tensor([1.0, 4.0, 3.0])
    by_score, by_share = Directions.by_score(scores), Directions.by_share(scores)
    assert by_score.order.tolist() == by_share.order.tolist() == [1, 2, 0]
    assert by_score.loss.tolist() == [4, 3, 1, 0]  # the largest that is left out
    assert by_share.loss.tolist() == [1, 0.5, 0.125, 0]


def test_variances_are_those_of_the_tokens() -> None:
    layer = sample(INNER, N)
    part = Variance()(MLP, layer.weight, layer.moments, MADE)
    variance = layer.rows.var(0, correction=0)
    torch.testing.assert_close(part.units.loss[:-1], variance.sort(descending=True).values)
    torch.testing.assert_close(part.mean, layer.rows.mean(0))


def test_shrinkage_raises_the_ridge_to_the_oracle_s() -> None:
    layer = sample(INNER, N)
    least = oracle_shrinkage(layer.rows.T.cov(correction=0), len(layer.rows))
    assert least > 1e-4
    plain, shrunk, asked = (
        make(MLP, layer.weight, layer.moments, MADE)
        for make in (ActiveEnergy(), ActiveEnergy(shrinkage=True), ActiveEnergy(damping=least))
    )
    assert shrunk.ridge == pytest.approx(asked.ridge, rel=1e-3)
    assert shrunk.ridge > 10 * plain.ridge
    assert get_recipe("corp_layerwise").method("mlp") == ActiveEnergy(shrinkage=True)


def test_the_salience_of_a_head_is_its_attention_times_the_slope_of_it() -> None:
    """By autograd through an attention that is written out: ``sum A * dL/dA`` of every head and image."""
    images, tokens = 3, 5
    queries, keys, values = (normal(images, HEADS, tokens, WIDTH, seed=seed).double() for seed in (1, 2, 3))
    weight, gradient = normal(INNER, N, seed=4).double(), normal(images, tokens, N, seed=5).double()
    attention = (queries @ keys.mT).softmax(-1).requires_grad_()
    inputs = (attention @ values).transpose(1, 2).flatten(2)
    (gradient * (inputs @ weight)).sum().backward()
    assert attention.grad is not None
    truth = (attention * attention.grad).sum((2, 3)).square().mean(0).sqrt().detach()  # root mean square over images
    gates = (inputs.detach() * (gradient @ weight.T)).sum(1)
    small = 1e-4 * gates  # as slopes of a good model are
    moments = Moments(images, images * tokens, {"input_sum": torch.zeros(INNER), "gate_fisher": small.T @ small})
    units = AttentionSalience()(ATTENTION, moments).units
    assert torch.equal(units.order, truth.argsort(descending=True))
    torch.testing.assert_close(1 - units.loss[1], truth.max() / truth.sum())
    for part in (
        FirstOrderUnits()(MLP, weight, moments, MADE),
        FirstOrderValues().values(ATTENTION, weight, moments, MADE),
    ):
        scores = small.square().mean(0).sqrt().sort(descending=True)
        assert torch.equal(part.units.order, scores.indices)
        torch.testing.assert_close(part.units.loss[:-1], scores.values)


def test_products_of_heads_are_their_truncated_svd() -> None:
    left, right = normal(N, WIDTH, seed=1).double(), normal(N + 2, WIDTH, seed=2).double()
    p, q, sizes = product_bases(left, right)
    u, singular_values, vt = torch.linalg.svd(left @ right.T)
    torch.testing.assert_close(sizes, singular_values[:WIDTH])
    for rank in range(WIDTH + 1):
        truth = u[:, :rank] * singular_values[:rank] @ vt[:rank]
        torch.testing.assert_close(left @ p[:, :rank] @ (right @ q[:, :rank]).T, truth)


def test_kept_coordinates_predict_the_others() -> None:
    """Against regressions of the queries and of the keys on their kept dimensions, on the tokens themselves."""
    layer, weight, bias = sample(N, 3 * INNER), normal(N, 3 * INNER).double(), normal(3 * INNER, seed=1).double()
    logits = Coordinates(damping=0).logits(ATTENTION, weight, bias, layer.moments)
    kept = logits.units.kept(2 * HEADS)
    assert (torch.bincount(kept // WIDTH, minlength=HEADS) == 2).all()
    query, key = logits.pair(kept)
    made = (layer.rows @ weight + bias).view(-1, 3, HEADS, WIDTH)
    for head in range(HEADS):
        own = kept[kept // WIDTH == head] % WIDTH
        queries, keys = made[:, 0, head], made[:, 1, head] - made[:, 1, head].mean(0)
        guessed = [each[:, own] @ torch.linalg.lstsq(each[:, own], each).solution for each in (queries, keys)]
        found = queries @ query[head][:, own] @ (keys @ key[head][:, own]).T
        torch.testing.assert_close(found[:50, :50], (guessed[0] @ guessed[1].T)[:50, :50], rtol=1e-6, atol=1e-8)
        energy = queries.square().mean(0) * keys.square().mean(0)
        assert set(energy.topk(2).indices.tolist()) == set(own.tolist())


@pytest.mark.parametrize("rank", [1, 3])
def test_the_bias_of_queries_is_a_row_of_their_weight(rank: int) -> None:
    """The best of a rank for ``[x, 1] [W_q; b_q] W_k^T``, of every head: what is lost is the tail of its SVD."""
    assert all(get_recipe(name).method("attention") == HeadProducts(bias_row=True) for name in ("comcat0", "comcat"))
    weight, bias = normal(N, 3 * INNER).double(), normal(3 * INNER, seed=8).double()
    logits = HeadProducts(bias_row=True).logits(ATTENTION, weight, bias, NOTHING)
    lost = torch.zeros((), dtype=torch.float64)
    for head in range(HEADS):
        own, other = (slice(place * INNER + head * WIDTH, place * INNER + (head + 1) * WIDTH) for place in (0, 1))
        queries, keys = torch.cat([weight[:, own], bias[None, own]]), weight[:, other]
        u, sizes, vt = torch.linalg.svd(queries @ keys.T)
        found = queries @ logits.query[head, :, :rank] @ (keys @ logits.key[head, :, :rank]).T
        torch.testing.assert_close(found, u[:, :rank] * sizes[:rank] @ vt[:rank])
        lost += sizes[rank:].square().sum()
    torch.testing.assert_close(logits.units.loss[HEADS * rank], lost)
    bare = HeadProducts(bias_row=True, biases=False).logits(ATTENTION, weight, bias, NOTHING)
    assert torch.equal(bare.query, HeadProducts().logits(ATTENTION, weight, bias, NOTHING).query)
