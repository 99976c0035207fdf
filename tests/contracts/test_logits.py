"""What low rank of the logits promises, against dense float64 truths."""

import pytest
import torch
from torch import Tensor

from lowrank_vit.linalg.heads import query_key
from lowrank_vit.methods.best import HeadLowRank
from lowrank_vit.records.factors import Logits
from lowrank_vit.records.moments import Moments
from tests.support.cases import in_turn
from tests.support.layer import ATTENTION, HEADS, INNER, WIDTH, N, normal

IMAGES, TOKENS = 40, 120  # what is averaged over images is not what is averaged over tokens


def layer() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (T, n), and weight and bias of the layer that makes their queries, keys and values."""
    return normal(TOKENS, N, seed=6) + 0.3, normal(N, 3 * INNER, seed=7), normal(3 * INNER, seed=8)


def slopes() -> Tensor:
    """Every image's gradient with respect to B of every head, (images, heads, s, s)."""
    return normal(IMAGES, HEADS, WIDTH, WIDTH) * torch.logspace(0, -1, WIDTH)


def head_moments(gradients: Tensor) -> Moments:
    """Of the layer of queries, keys and values, from the gradients of B, (images, heads, s, s)."""
    x = layer()[0]
    sums = {
        "input_sum": x.sum(0),
        "input_second": x.T @ x,
        "head_fisher_query": (gradients @ gradients.mT).sum(0),
        "head_fisher_key": (gradients.mT @ gradients).sum(0),
    }
    return Moments(len(gradients), TOKENS, sums)


def vectors(place: int, head: int) -> list[Tensor]:
    """Every token's query (place 0) or key (place 1) of a head, by the layer itself."""
    x, weight, bias = layer()
    first = place * INNER + head * WIDTH
    return [(token @ weight + bias)[first : first + WIDTH] for token in x]


def said_by_tokens(place: int, head: int) -> Tensor:
    """The second moment of a head's queries, or the covariance of its keys: a softmax ignores what all keys share."""
    found = vectors(place, head)
    centre = sum(found) / len(found) if place == 1 else torch.zeros(WIDTH)
    return sum(torch.outer(own - centre, own - centre) for own in found) / len(found)


def said_by_loss(place: int, head: int, gradients: Tensor) -> Tensor:
    """``E[D D^T]`` for the queries, ``E[D^T D]`` for the keys, over images."""
    return sum(d[head] @ d[head].T if place == 0 else d[head].T @ d[head] for d in gradients) / len(gradients)


def true_metric(place: int, gradients: Tensor, share: float) -> Tensor:
    """What errors of the queries or keys are weighed by, (h, s, s): ``share`` of it is the tokens', as large as the rest."""
    metrics = []
    for head in range(HEADS):
        loss, tokens = said_by_loss(place, head, gradients), said_by_tokens(place, head)
        size = sum(loss[i, i] for i in range(WIDTH)) / sum(tokens[i, i] for i in range(WIDTH))
        metrics.append((1 - share) * loss + share * size * tokens)
    return torch.stack(metrics)


def logits_of(gradients: Tensor, **fields: object) -> tuple[Logits, Tensor, Tensor]:
    """The decomposition, and the metrics of queries and keys that it is to minimise in: half tokens', half loss's."""
    share = fields.get("activation_share", 0.5)
    _, weight, bias = layer()
    logits = HeadLowRank(logit_damping=0.0, **fields).logits(ATTENTION, weight, bias, head_moments(gradients))
    return logits, *(true_metric(place, gradients, share) for place in (0, 1))


def logit_loss(product: Tensor, left: Tensor, right: Tensor) -> float:
    """``1/2 tr(R (I - B) K (I - B)^T) / tr R``, summed over heads; product: (h, s, s)."""
    error = torch.eye(WIDTH) - product
    each = (left @ error @ right * error).sum((1, 2)) / left.diagonal(dim1=1, dim2=2).sum(1)
    return 0.5 * float(each.sum())


@pytest.mark.parametrize(("each_head", "share"), in_turn([True, False], [0.5, 0.0, 0.2, 1.0]))
def test_logits_lose_what_they_say(each_head: bool, share: float) -> None:
    logits, left, right = logits_of(slopes(), each_head=each_head, activation_share=share)
    for count in range(logits.units.multiple, INNER + 1, logits.units.multiple):
        mask = torch.zeros(INNER)
        mask[logits.units.kept(count)] = 1
        product = (logits.query * mask.view(HEADS, 1, WIDTH)) @ logits.key.mT
        loss = logit_loss(product, left, right)
        assert float(logits.units.loss[count]) == pytest.approx(loss, rel=1e-6, abs=1e-12)
    torch.testing.assert_close(product, torch.eye(WIDTH).expand_as(product), atol=1e-9, rtol=0)
    assert (logits.units.loss.diff() <= 1e-12).all()


def test_directions_of_all_heads_come_in_the_order_of_what_they_gain() -> None:
    """Each gains no more than the one before, whichever head it is of; the first ones are of several heads."""
    logits, _, _ = logits_of(slopes())
    gains = -logits.units.loss.diff()
    assert (gains.diff() <= 1e-12).all()
    assert len({int(place) // WIDTH for place in logits.units.kept(HEADS)}) > 1


def test_no_other_product_of_that_rank_is_better() -> None:
    logits, left, right = logits_of(slopes(), each_head=False)
    query, key = logits.query[..., :2], logits.key[..., :2]
    best = logit_loss(query @ key.mT, left, right)
    for seed, scale in enumerate((1e-3, 1e-2, 1e-1)):
        other = (query + scale * normal(*query.shape, seed=seed)) @ (key + scale * normal(*key.shape, seed=seed + 9)).mT
        assert logit_loss(other, left, right) > best


def test_the_fisher_of_independent_factors_is_met_exactly() -> None:
    """Where D = a b^T with independent a and b, the Kronecker form is the Fisher information itself."""
    a, b = normal(20000, WIDTH, seed=3), normal(20000, WIDTH, seed=4)
    gradients = a[:, :, None] * b[:, None, :]
    error = normal(WIDTH, WIDTH, seed=5)
    truth = 0.5 * (gradients * error).sum((1, 2)).square().mean()
    left, right = (gradients @ gradients.mT).mean(0), (gradients.mT @ gradients).mean(0)
    assert float(0.5 * (left @ error @ right * error).sum() / left.trace()) == pytest.approx(float(truth), rel=0.05)
    query, key, _ = query_key(left, right, 0.1)
    torch.testing.assert_close(query @ key.T, torch.eye(WIDTH), atol=1e-10, rtol=0)


def test_dead_heads_are_finite() -> None:
    dead = torch.zeros(N, 3 * INNER)
    logits = HeadLowRank().logits(ATTENTION, dead, dead[0], head_moments(torch.zeros(2, HEADS, WIDTH, WIDTH)))
    assert torch.isfinite(logits.query).all()
    assert torch.isfinite(logits.key).all()
    assert torch.isfinite(logits.units.loss).all()
