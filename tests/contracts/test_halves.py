"""What the decompositions of whole attention modules and MLPs promise, against dense float64 truths."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lowrank_vit.calibrate import resolve
from lowrank_vit.decompose import ATTENTIONS, MLPS
from lowrank_vit.decompose.heads import HeadLowRank, activation_metrics, blend, query_key
from lowrank_vit.decompose.interpolate import eliminate, refit, refitted
from lowrank_vit.parts import HIDDEN, QUERY_KEY, VALUE, AttentionSite, Directions, Logits, MlpSite, Part
from lowrank_vit.records import Moments, Site
from tests.contracts.layer import Sample, dense_moments, sample

HEADS, WIDTH, N = 3, 4, 14
INNER = HEADS * WIDTH
ATTENTION = AttentionSite(
    "attn", Site("attn.qkv", N, 3 * INNER, True, HEADS), Site("attn.proj", INNER, N, True), WIDTH, None
)
MLP = MlpSite("mlp", Site("mlp.fc1", N, INNER, True), Site("mlp.fc2", INNER, N, True))
PARTS = [*(("values", name) for name in ATTENTIONS.names()), *(("units", name) for name in MLPS.names())]
each_part = pytest.mark.parametrize(("kind", "name"), PARTS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem(k: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A covariance (k, k) with strong correlations and a weight (k, d)."""
    mixing = normal(k, k, seed=seed) * torch.logspace(0, -2, k)
    return mixing @ mixing.T + 1e-3 * torch.eye(k), normal(k, d, seed=seed + 1)


def restricted(moments: Moments, needs: frozenset[str], site: Site) -> Moments:
    """Only the statistics that the method asks for: it must not read another."""
    wanted = {*resolve(needs, site), "input_sum"}
    wanted |= {"sensitive_weight", "sensitive_input_sum"} if "sensitive_second" in needs else set()
    return replace(moments, sums={key: value for key, value in moments.sums.items() if key in wanted})


def part_of(kind: str, name: str, layer: Sample, **fields: object) -> Part:
    """The part whose refit makes a half's output, from nothing but what its method asks for."""
    if kind == "units":
        mlp = MLPS.get(name)(**fields)
        return mlp(MLP, layer.weight, restricted(layer.moments, mlp.needs[0], MLP.fc2))
    attention = ATTENTIONS.get(name)(**fields)
    return attention.values(ATTENTION, layer.weight, restricted(layer.moments, attention.needs[1], ATTENTION.proj))


def output_loss(layer: Sample, whole: Tensor, sensitivity: float, gradient_damping: float) -> float:
    """``1/2 E[(x E - mean)^T G (x E - mean)]`` over weighted tokens, by its definition, token by token."""
    slopes = layer.gradients.flatten(0, 1)
    energies = slopes.square().sum(1)
    weights = (1 - sensitivity) / len(slopes) + sensitivity * energies / energies.sum()
    metric = slopes.T @ slopes / len(layer.gradients)
    metric = metric + gradient_damping * metric.diagonal().mean() * torch.eye(len(metric))
    error = layer.rows @ (layer.weight - whole)
    error = error - weights @ error
    return 0.5 * float(weights @ (error @ metric * error).sum(1))


def loss_of(covariance: Tensor, weight: Tensor, kept: Tensor) -> float:
    """By its definition, with the dense least-squares solution."""
    root = torch.linalg.cholesky(covariance).T
    fitted = torch.linalg.lstsq(root[:, kept], root @ weight).solution
    return float(0.5 * (root @ weight - root[:, kept] @ fitted).square().sum())


def brute_force(covariance: Tensor, weight: Tensor) -> tuple[list[int], list[float]]:
    """Backward elimination with a least-squares solution for every candidate of every step."""
    left, order, losses = list(range(len(weight))), [], [0.0]
    while left:
        rests = {j: torch.tensor([i for i in left if i != j], dtype=torch.long) for j in left}
        trials = {
            j: loss_of(covariance, weight, rest) if len(rest) else 0.5 * float((weight * (covariance @ weight)).sum())
            for j, rest in rests.items()
        }
        worst = min(trials, key=trials.__getitem__)
        order.append(worst)
        losses.append(trials[worst])
        left.remove(worst)
    return order[::-1], losses[::-1]


def test_something_is_registered() -> None:
    assert "heads" in ATTENTIONS.names()
    assert "interpolative" in MLPS.names()


@pytest.mark.parametrize("d", [3, 12])
class TestElimination:
    def test_downdates_equal_brute_force(self, d: int) -> None:
        covariance, weight = problem(10, d)
        order, loss = eliminate(covariance, weight)
        truth, losses = brute_force(covariance, weight)
        assert order.tolist() == truth
        torch.testing.assert_close(loss, torch.tensor(losses), rtol=1e-8, atol=0)
        assert loss[-1] == 0

    def test_many_units_are_compacted_without_a_trace(self, d: int) -> None:
        covariance, weight = problem(150, d)
        order, loss = eliminate(covariance, weight)
        assert sorted(order.tolist()) == list(range(150))
        for count in (20, 70, 149):
            assert float(loss[count]) == pytest.approx(loss_of(covariance, weight, order[:count]), rel=1e-6)

    def test_a_given_order_has_its_own_losses(self, d: int) -> None:
        covariance, weight = problem(8, d)
        order, loss = eliminate(covariance, weight, torch.arange(8))
        assert order.tolist() == list(range(8))
        for count in range(1, 8):
            assert float(loss[count]) == pytest.approx(loss_of(covariance, weight, order[:count]), rel=1e-8)

    def test_a_permutation_of_the_units_is_followed(self, d: int) -> None:
        covariance, weight = problem(12, d)
        turned = torch.randperm(12, generator=torch.Generator().manual_seed(2))
        order, loss = eliminate(covariance, weight)
        other, same = eliminate(covariance[turned][:, turned], weight[turned])
        assert torch.equal(turned[other], order)
        torch.testing.assert_close(same, loss, rtol=1e-8, atol=1e-14)

    def test_refit_is_least_squares(self, d: int) -> None:
        covariance, weight = problem(9, d)
        kept = torch.tensor([0, 3, 4, 8])
        root = torch.linalg.cholesky(covariance).T
        truth = torch.linalg.lstsq(root[:, kept], root @ weight).solution
        torch.testing.assert_close(refit(covariance, weight, kept), truth)
        assert torch.equal(refit(covariance, weight, torch.arange(9)), weight)

    def test_equal_units_are_removed_for_nothing(self, d: int) -> None:
        """Six units, each there twice: half of them can go, whatever the weight is."""
        covariance, _ = problem(6, d)
        twins = torch.arange(6).repeat(2)
        _, loss = eliminate(covariance[twins][:, twins] + 1e-10 * torch.eye(12), normal(12, d, seed=3))
        assert loss[6] < 1e-8 < 1e-5 < loss[5]


@each_part
class TestEveryPart:
    @pytest.mark.parametrize("sensitivity", [0.0, 0.5, 1.0])
    def test_loss_is_the_stated_objective(self, kind: str, name: str, sensitivity: float) -> None:
        layer = sample(INNER, N)
        part = part_of(kind, name, layer, damping=0.0, sensitivity=sensitivity)
        assert part.ridge == 0
        for count in range(1, INNER + 1):
            _, whole = refitted(part, part.units.kept(count))
            truth = output_loss(layer, whole, sensitivity, 0.1)
            assert float(part.units.loss[count]) == pytest.approx(truth, rel=1e-5, abs=1e-12)

    def test_all_of_it_is_the_layer_as_it_was(self, kind: str, name: str) -> None:
        layer = sample(INNER, N)
        part = part_of(kind, name, layer)
        _, whole = refitted(part, part.units.kept(INNER))
        torch.testing.assert_close(whole, layer.weight, atol=1e-9, rtol=0)
        assert torch.equal(part.units.kept(None), torch.arange(INNER))

    def test_no_other_weight_on_what_is_kept_is_better(self, kind: str, name: str) -> None:
        layer = sample(INNER, N)
        part = part_of(kind, name, layer, damping=0.0)
        kept = part.units.kept(5)
        rows, whole = refitted(part, kept)
        best = output_loss(layer, whole, 0.5, 0.1)
        basis = torch.eye(INNER) if part.basis is None else torch.block_diag(*part.basis)
        for seed, scale in enumerate((1e-3, 1e-2, 1e-1)):
            other = basis[:, kept] @ (rows + scale * rows.std() * normal(*rows.shape, seed=seed))
            assert output_loss(layer, other, 0.5, 0.1) > best

    def test_it_beats_random_choices(self, kind: str, name: str) -> None:
        layer = sample(INNER, N)
        part = part_of(kind, name, layer, damping=0.0)
        for count in (3, 6, 9):
            for seed in range(5):
                other = torch.randperm(INNER, generator=torch.Generator().manual_seed(seed))[:count].sort().values
                _, whole = refitted(part, other)
                assert output_loss(layer, whole, 0.5, 0.1) >= float(part.units.loss[count]) - 1e-12

    def test_order_is_nested_and_loss_monotone(self, kind: str, name: str) -> None:
        units = part_of(kind, name, sample(INNER, N)).units
        assert sorted(units.order.tolist()) == list(range(INNER))
        assert (units.loss.diff() <= 1e-12).all()
        for count in range(1, INNER):
            assert set(units.kept(count).tolist()) < set(units.kept(count + 1).tolist())

    @pytest.mark.parametrize("images", [1, 2])
    def test_few_images_and_dead_units_are_finite(self, kind: str, name: str, images: int) -> None:
        weight = sample(INNER, N).weight
        inputs, gradients = normal(images, 3, INNER), normal(images, 3, N)
        inputs[..., 0] = 0
        for x, g in ((inputs, gradients), (torch.ones_like(inputs), gradients), (inputs * 0, gradients * 0)):
            moments = dense_moments(weight, x, g)
            part = part_of(kind, name, Sample(weight, x, g, moments), damping=0.0)
            assert torch.isfinite(part.units.loss).all()
            assert part.ridge > 0
            for count in (1, 5, INNER):
                assert torch.isfinite(refitted(part, part.units.kept(count))[1]).all()


def test_hidden_units_turn_with_the_layer() -> None:
    layer, turned = sample(INNER, N), torch.randperm(INNER, generator=torch.Generator().manual_seed(2))
    inputs, weight = layer.inputs[..., turned], layer.weight[turned]
    other = Sample(weight, inputs, layer.gradients, dense_moments(weight, inputs, layer.gradients))
    one, two = (part_of("units", "interpolative", own).units for own in (layer, other))
    assert torch.equal(turned[two.order], one.order)
    torch.testing.assert_close(two.loss, one.loss, rtol=1e-6, atol=1e-12)


def test_values_turn_with_the_heads() -> None:
    """Another order of the heads, and any rotation within a head, lose the same."""
    layer = sample(INNER, N)
    heads = torch.tensor([2, 0, 1])
    rotation = torch.block_diag(*(torch.linalg.qr(normal(WIDTH, WIDTH, seed=s)).Q for s in range(HEADS)))
    turned = torch.eye(INNER).view(INNER, HEADS, WIDTH)[:, heads].flatten(1) @ rotation
    inputs, weight = layer.inputs @ turned, turned.T @ layer.weight
    other = Sample(weight, inputs, layer.gradients, dense_moments(weight, inputs, layer.gradients))
    one, two = (part_of("values", "heads", own, damping=0.0).units for own in (layer, other))
    torch.testing.assert_close(two.loss, one.loss, rtol=1e-5, atol=1e-10)


def test_one_rank_for_all_heads_of_a_layer() -> None:
    units = part_of("values", "heads", sample(INNER, N), each_head=False).units
    assert units.multiple == HEADS
    for count in range(HEADS, INNER + 1, HEADS):
        assert (torch.bincount(units.kept(count) // WIDTH, minlength=HEADS) == count // HEADS).all()
    ranks = units.curve("attn.value", ATTENTION.parts[VALUE], 2).ranks
    assert ranks.step == 2 * HEADS


def head_moments(slopes: Tensor) -> Moments:
    """Of the layer of queries, keys and values, from the gradients of B, (images, heads, s, s)."""
    x = normal(len(slopes), N, seed=6)
    sums = {
        "input_sum": x.sum(0),
        "input_second": x.T @ x,
        "head_fisher_query": (slopes @ slopes.mT).sum(0),
        "head_fisher_key": (slopes.mT @ slopes).sum(0),
    }
    return Moments(len(slopes), len(slopes), sums)


def logits_of(slopes: Tensor, **fields: object) -> tuple[Logits, Tensor, Tensor]:
    """The decomposition, and the metrics of queries and keys that it is to minimise in."""
    moments, method = head_moments(slopes), HeadLowRank(logit_damping=0.0, **fields)
    weight, bias = normal(N, 3 * INNER, seed=7), normal(3 * INNER, seed=8)
    activations = activation_metrics(ATTENTION, weight, bias, moments)
    left, right = (
        blend(moments.mean(name), own, method.activation_share)
        for name, own in zip(("head_fisher_query", "head_fisher_key"), activations, strict=True)
    )
    return method.logits(ATTENTION, weight, bias, moments), left, right


def logit_loss(product: Tensor, left: Tensor, right: Tensor) -> float:
    """``1/2 tr(R (I - B) K (I - B)^T) / tr R``, summed over heads; product: (h, s, s)."""
    error = torch.eye(WIDTH) - product
    each = (left @ error @ right * error).sum((1, 2)) / left.diagonal(dim1=1, dim2=2).sum(1)
    return 0.5 * float(each.sum())


SLOPES = normal(40, HEADS, WIDTH, WIDTH) * torch.logspace(0, -1, WIDTH)


@pytest.mark.parametrize("each_head", [True, False])
def test_logits_lose_what_they_say(each_head: bool) -> None:
    logits, left, right = logits_of(SLOPES.double(), each_head=each_head)
    for count in range(logits.units.multiple, INNER + 1, logits.units.multiple):
        mask = torch.zeros(INNER)
        mask[logits.units.kept(count)] = 1
        product = (logits.query * mask.view(HEADS, 1, WIDTH)) @ logits.key.mT
        loss = logit_loss(product, left, right)
        assert float(logits.units.loss[count]) == pytest.approx(loss, rel=1e-6, abs=1e-12)
    torch.testing.assert_close(product, torch.eye(WIDTH).expand_as(product), atol=1e-9, rtol=0)
    assert (logits.units.loss.diff() <= 1e-12).all()


def test_no_other_product_of_that_rank_is_better() -> None:
    logits, left, right = logits_of(SLOPES.double(), each_head=False)
    query, key = logits.query[..., :2], logits.key[..., :2]
    best = logit_loss(query @ key.mT, left, right)
    for seed, scale in enumerate((1e-3, 1e-2, 1e-1)):
        other = (query + scale * normal(*query.shape, seed=seed)) @ (key + scale * normal(*key.shape, seed=seed + 9)).mT
        assert logit_loss(other, left, right) > best


def test_the_fisher_of_independent_factors_is_met_exactly() -> None:
    """Where D = a b^T with independent a and b, the Kronecker form is the Fisher information itself."""
    a, b = normal(20000, WIDTH, seed=3), normal(20000, WIDTH, seed=4)
    slopes = a[:, :, None] * b[:, None, :]
    error = normal(WIDTH, WIDTH, seed=5)
    truth = 0.5 * (slopes * error).sum((1, 2)).square().mean()
    left, right = (slopes @ slopes.mT).mean(0), (slopes.mT @ slopes).mean(0)
    assert float(0.5 * (left @ error @ right * error).sum() / left.trace()) == pytest.approx(float(truth), rel=0.05)
    query, key, _ = query_key(left, right, 0.1)
    torch.testing.assert_close(query @ key.T, torch.eye(WIDTH), atol=1e-10, rtol=0)


def test_activation_metrics_are_those_of_queries_and_keys() -> None:
    moments = head_moments(SLOPES)
    x, weight, bias = normal(40, N, seed=6), normal(N, 3 * INNER, seed=7), normal(3 * INNER, seed=8)
    queries, keys = activation_metrics(ATTENTION, weight, bias, moments)
    q, k, _ = (x @ weight + bias).unflatten(1, (3, HEADS, WIDTH)).unbind(1)
    k = k - k.mean(0)
    torch.testing.assert_close(queries, torch.einsum("thi,thj->hij", q, q) / 40)
    torch.testing.assert_close(keys, torch.einsum("thi,thj->hij", k, k) / 40)


def test_dead_heads_are_finite() -> None:
    dead = torch.zeros(N, 3 * INNER)
    logits = HeadLowRank().logits(ATTENTION, dead, dead[0], head_moments(torch.zeros(2, HEADS, WIDTH, WIDTH)))
    assert torch.isfinite(logits.query).all()
    assert torch.isfinite(logits.key).all()
    assert torch.isfinite(logits.units.loss).all()


def test_costs_are_those_of_the_layers() -> None:
    """Hand-worked: queries and keys n each and a bias; values n and d; hidden units n, a bias and d; biases once."""
    costs = {**ATTENTION.parts, **MLP.parts}
    assert costs[QUERY_KEY].dense + costs[VALUE].dense == N * 3 * INNER + 3 * INNER + INNER * N + N
    units = Directions(torch.arange(INNER), torch.zeros(INNER + 1))
    curves = {part: units.curve(part, own, 1) for part, own in costs.items()}
    assert curves[QUERY_KEY].cost(5) == 5 * (2 * N + 1)
    assert curves[VALUE].cost(5) == 5 * 2 * N + N
    assert curves[HIDDEN].cost(5) == 5 * (N + 1 + N) + N
    assert costs[HIDDEN].dense == INNER * (N + 1 + N) + N
