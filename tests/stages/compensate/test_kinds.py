import json
from dataclasses import replace
from itertools import product

import pytest
import torch

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.compensate import COMPENSATIONS, Compensation, State, empty_module, squared_error
from tests.support.cases import in_turn
from tests.support.compensation_problems import SHAPES, every_shape, loss, make, problem, root

NAMES = COMPENSATIONS.names()
SPARSE = ["diagonal", "structured_sparse", "unstructured_sparse"]

every_kind = pytest.mark.parametrize("kind", NAMES)
IN_TURN = [(kind, *shape) for kind, shape in in_turn(NAMES, SHAPES)]
every_kind_in_turn = pytest.mark.parametrize(("kind", "n", "d"), IN_TURN)
RANKS = [(kind, *shape, deficient) for (kind, deficient), shape in in_turn(product(NAMES, (False, True)), SHAPES)]
every_rank = pytest.mark.parametrize(("kind", "n", "d", "deficient"), RANKS)


def trainable(state: State) -> State:
    return replace(state, trainable={name: t.clone().requires_grad_() for name, t in state.trainable.items()})


def gradients(compensation: Compensation, state: State, residual, moment) -> list[torch.Tensor]:
    state = trainable(state)
    total = squared_error(compensation.dense(state), residual, moment).sum()
    return list(torch.autograd.grad(total, list(state.trainable.values())))


@pytest.mark.parametrize(
    ("kind", "budget"), in_turn([name for name in NAMES if name != "diagonal"], [0.0, -0.1, 1.5, float("nan")])
)
def test_budget_out_of_range(kind, budget):
    with pytest.raises(InputError, match="budget"):
        make(kind, budget)


@every_rank
def test_closed_form_is_a_minimiser(kind, n, d, deficient):
    residual, moment = problem(n, d, deficient=deficient)
    compensation = make(kind)
    state = compensation.closed_form(residual, moment)
    z = compensation.dense(state)
    best = loss(z[0], residual[0], moment[0])
    energy = loss(torch.zeros_like(z[0]), residual[0], moment[0])
    assert z.isfinite().all()
    assert best < energy
    scale = max(
        t.abs().max() for t in gradients(compensation, compensation.start(residual, moment, [0]), residual, moment)
    )
    assert max(t.abs().max() for t in gradients(compensation, state, residual, moment)) < 1e-6 * scale
    generator = torch.Generator().manual_seed(1)
    for size in (1e-3, 1e-1, 1.0):
        noise = {k: torch.randn(t.shape, generator=generator).double() * t.std() for k, t in state.trainable.items()}
        moved = replace(state, trainable={k: t + size * noise[k] for k, t in state.trainable.items()})
        assert loss(compensation.dense(moved)[0], residual[0], moment[0]) > best - 1e-10 * energy


@pytest.mark.parametrize(("kind", "n", "d", "deficient"), [case for case in RANKS if case[0] in SPARSE])
def test_sparse_closed_form_is_dense_least_squares_on_the_support(kind, n, d, deficient):
    residual, moment = problem(n, d, deficient=deficient)
    compensation = make(kind)
    state = compensation.closed_form(residual, moment)
    positions = state.fixed["positions"][0]
    left = root(moment[0])
    design = torch.kron(left, torch.eye(d, dtype=torch.float64))[:, positions]  # row-major vec: (L^T Z)_td
    target = (left @ residual[0]).flatten()
    values = torch.linalg.lstsq(design, target, driver="gelsd").solution
    truth = float((design @ values - target).square().sum())
    found = loss(compensation.dense(state)[0], residual[0], moment[0])
    assert found == pytest.approx(truth, abs=1e-9 * float(target.square().sum()))
    if not deficient:
        torch.testing.assert_close(state.trainable["entries"][0], values, rtol=1e-6, atol=1e-8)
    outside = torch.ones(n * d, dtype=torch.bool)
    outside[positions] = False
    assert not compensation.dense(state)[0].flatten()[outside].any()


@pytest.mark.parametrize("deficient", [False, True])
@pytest.mark.parametrize(("n", "d"), SHAPES[:2])
def test_low_rank_closed_form_is_eckart_young(n, d, deficient):
    residual, moment = problem(n, d, deficient=deficient)
    compensation = make("low_rank")
    q = compensation.rank(n, d)
    z = compensation.dense(compensation.closed_form(residual, moment))[0]
    singular_values = torch.linalg.svdvals(root(moment[0]) @ residual[0])
    assert torch.linalg.matrix_rank(z) == q
    assert loss(z, residual[0], moment[0]) == pytest.approx(float(singular_values[q:].square().sum()), rel=1e-7)


@every_shape
def test_low_rank_on_whitened_optimal_factors_is_more_rank(n, d):
    weight, moment = problem(n, d, seed=3)
    left = root(moment[0])
    _, singular_values, vt = torch.linalg.svd(left @ weight[0], full_matrices=False)
    compensation = make("low_rank")
    rank = 2
    q = compensation.rank(n, d)
    residual = weight - weight @ vt[:rank].T @ vt[:rank]
    z = compensation.dense(compensation.closed_form(residual, moment))
    more = weight[0] @ vt[: rank + q].T @ vt[: rank + q]
    torch.testing.assert_close(weight[0] - residual[0] + z[0], more, rtol=1e-6, atol=1e-8)
    tail = float(singular_values[rank + q :].square().sum())
    assert loss(z[0], residual[0], moment[0]) == pytest.approx(tail, rel=1e-8)


def test_diagonal_is_the_formula_of_each_column():
    residual, moment = problem(10, 7)
    found = make("diagonal").closed_form(residual, moment).trainable["entries"][0]
    product_ = moment[0] @ residual[0]
    torch.testing.assert_close(found, product_.diagonal() / moment[0].diagonal()[:7])


@every_kind
def test_start_is_zero_but_not_stationary(kind):
    residual, moment = problem(12, 36, layers=2)
    compensation = make(kind)
    state = compensation.start(residual, moment, [1, 2])
    assert not compensation.dense(state).any()
    assert any(gradient.abs().max() > 0 for gradient in gradients(compensation, state, residual, moment))
    again = compensation.start(residual, moment, [1, 2])
    assert all(torch.equal(state.trainable[name], again.trainable[name]) for name in state.trainable)
    closed = compensation.closed_form(residual, moment)
    assert all(torch.equal(state.fixed[name], closed.fixed[name]) for name in state.fixed)
    assert state.fixed.keys() == closed.fixed.keys()
    assert {k: t.shape for k, t in state.trainable.items()} == {k: t.shape for k, t in closed.trainable.items()}


@every_kind_in_turn
def test_batched_layers_equal_single_ones(kind, n, d):
    residual, moment = problem(n, d, layers=3)
    compensation = make(kind)
    for solve in (compensation.closed_form, lambda r, m: compensation.start(r, m, [5] * len(r))):
        together = compensation.dense(solve(residual, moment))
        alone = torch.cat([compensation.dense(solve(residual[i : i + 1], moment[i : i + 1])) for i in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)


@every_kind_in_turn
def test_product_is_that_of_the_dense_matrix(kind, n, d):
    residual, moment = problem(n, d, layers=2)
    compensation = make(kind)
    state = compensation.closed_form(residual, moment)
    x = torch.randn(2, 5, n, dtype=torch.float64)
    torch.testing.assert_close(compensation.product(state, x), x @ compensation.dense(state))


@pytest.mark.parametrize("budget", [0.05, 0.2])
@every_kind_in_turn
def test_module_applies_z_with_the_parameters_counted(kind, n, d, budget):
    residual, moment = problem(n, d, layers=3)
    compensation = make(kind, budget)
    state = compensation.closed_form(residual, moment)
    x = torch.randn(2, 5, n, dtype=torch.float64)
    for index in range(3):
        module = compensation.module(state, index)
        torch.testing.assert_close(module(x), x @ compensation.dense(state)[index])
        assert sum(p.numel() for p in module.parameters()) == compensation.parameter_count(n, d)
        assert module(x).shape == (2, 5, d)
        config = json.loads(json.dumps(module.config))
        rebuilt = empty_module(**config).double()
        assert type(rebuilt) is compensation.module_type
        assert not rebuilt(x).any()
        rebuilt.load_state_dict(module.state_dict(), strict=True)
        torch.testing.assert_close(rebuilt(x), module(x), rtol=0, atol=0)
        assert all(not b.is_floating_point() for b in module.buffers())


@every_kind
def test_factors_multiply_to_z_where_z_folds(kind):
    residual, moment = problem(12, 36, layers=2)
    compensation = make(kind)
    state = compensation.closed_form(residual, moment)
    factors = compensation.factors(state, 1)
    assert (factors is not None) == (kind == "low_rank")
    if factors is not None:
        g, y = factors
        torch.testing.assert_close(g @ y.T, compensation.dense(state)[1])
        torch.testing.assert_close(g.norm(dim=0), y.norm(dim=0))


@pytest.mark.parametrize("kind", [name for name in NAMES if name != "diagonal"])
def test_budget_is_met_and_not_exceeded(kind):
    for (n, d), budget in product([(192, 192), (192, 576), (768, 192), (384, 1536), (50, 72)], (0.02, 0.05, 0.29)):
        count = make(kind, budget).parameter_count(n, d)
        smallest, step = make(kind, 1e-9).parameter_count(n, d), max(n, d)
        assert count <= max(budget * n * d + 1e-6, smallest)
        assert count > budget * n * d - 2 * step
        assert 0 < smallest <= n + d


def test_counts_of_the_paper():
    assert [make("low_rank", 0.05).rank(n, d) for n, d in ((768, 768), (768, 2304), (768, 3072))] == [19, 28, 30]
    assert make("unstructured_sparse", 0.29).parameter_count(10, 10) == 29
    assert make("structured_sparse", 0.05).counts(192, 576) == (9, 27)
    assert make("structured_sparse", 0.05).counts(50, 72) == (0, 3)
    assert make("structured_sparse", 0.05).counts(7, 10) == (0, 1)
    assert make("structured_sparse", 0.05).counts(10, 7) == (1, 0)


@every_kind
def test_layers_without_input_or_residual_stay_finite(kind):
    residual, moment = problem(12, 36)
    compensation = make(kind)
    for r, m in ((residual, torch.zeros_like(moment)), (torch.zeros_like(residual), moment)):
        state = compensation.closed_form(r, m)
        assert all(tensor.isfinite().all() for tensor in state.trainable.values())
