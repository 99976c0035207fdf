import json
from dataclasses import replace
from itertools import product

import pytest
import torch

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.compensate import COMPENSATIONS, Compensation, State, empty_module, squared_error
from tests.support.cases import in_turn
from tests.support.compensation_problems import SHAPES, loss, make, problem, root

NAMES = COMPENSATIONS.names()

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


def test_budget_out_of_range():
    for kind, budget in in_turn([name for name in NAMES if name != "diagonal"], [0.0, -0.1, 1.5, float("nan")]):
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


@pytest.mark.parametrize(("n", "d", "deficient"), [(*SHAPES[0], False), (*SHAPES[1], True)])
def test_low_rank_closed_form_is_eckart_young(n, d, deficient):
    residual, moment = problem(n, d, deficient=deficient)
    compensation = make("low_rank")
    q = compensation.rank(n, d)
    z = compensation.dense(compensation.closed_form(residual, moment))[0]
    singular_values = torch.linalg.svdvals(root(moment[0]) @ residual[0])
    assert torch.linalg.matrix_rank(z) == q
    assert loss(z, residual[0], moment[0]) == pytest.approx(float(singular_values[q:].square().sum()), rel=1e-7)


@pytest.mark.parametrize(("n", "d"), SHAPES[1:3])
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


@every_kind_in_turn
def test_module_applies_z_with_the_parameters_counted(kind, n, d):
    residual, moment = problem(n, d, layers=3)
    compensation = make(kind)
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


def test_factors_multiply_to_z_where_z_folds():
    residual, moment = problem(12, 36, layers=2)
    states = {kind: make(kind).closed_form(residual, moment) for kind in NAMES}
    factors = {kind: make(kind).factors(state, 1) for kind, state in states.items()}
    assert [kind for kind, found in factors.items() if found is not None] == ["low_rank"]
    g, y = factors["low_rank"]
    torch.testing.assert_close(g @ y.T, make("low_rank").dense(states["low_rank"])[1])
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


@pytest.mark.parametrize(("n", "d"), SHAPES[1:3])
def test_one_row_or_column_is_the_best_of_all(n, d):
    residual, moment = problem(n, d, seed=5)
    compensation = make("structured_sparse", 1e-9)
    rows, _ = compensation.counts(n, d)
    best = []
    for index in range(n if rows else d):
        z = torch.zeros(n, d, dtype=torch.float64)
        if rows:
            z[index] = moment[0, index] @ residual[0] / moment[0, index, index]
        else:
            z[:, index] = residual[0, :, index]
        best.append(loss(z, residual[0], moment[0]))
    z = compensation.dense(compensation.closed_form(residual, moment))[0]
    assert loss(z, residual[0], moment[0]) == pytest.approx(min(best), rel=1e-9)


def test_rows_are_picked_one_by_one_by_what_they_gain():
    residual, moment = problem(10, 7, seed=8)
    compensation = make("structured_sparse", 0.4)
    assert compensation.counts(10, 7) == (4, 0)
    left, picked = root(moment[0]), []
    target = left @ residual[0]

    def left_over(rows: list[int]) -> float:
        values = torch.linalg.lstsq(left[:, rows], target, driver="gelsd").solution
        return float((left[:, rows] @ values - target).square().sum())

    for _ in range(4):
        picked.append(min(set(range(10)) - set(picked), key=lambda row: left_over([*picked, row])))
    state = compensation.closed_form(residual, moment)
    assert compensation.module(state, 0).index.tolist() == sorted(picked)
    assert loss(compensation.dense(state)[0], residual[0], moment[0]) == pytest.approx(left_over(picked))


def test_structured_takes_the_better_axis_for_each_layer():
    residual, moment = problem(12, 36, layers=2)
    moment = moment + torch.eye(12, dtype=torch.float64)
    residual[0, 3] *= 100
    residual[1, :, [1, 7, 30]] *= 100
    compensation = make("structured_sparse", 0.09)
    state = compensation.closed_form(residual, moment)
    first, second = (compensation.module(state, index) for index in range(2))
    assert (first.config["axis"], first.index.tolist()) == ("rows", [3])
    assert (second.config["axis"], second.index.tolist()) == ("columns", [1, 7, 30])


@pytest.mark.parametrize(("n", "d"), SHAPES[2:])
def test_one_entry_is_the_best_of_all(n, d):
    residual, moment = problem(n, d, seed=6)
    compensation = make("unstructured_sparse", 1e-9)
    z = compensation.dense(compensation.closed_form(residual, moment))[0]
    gain = (moment[0] @ residual[0]).square() / moment[0].diagonal()[:, None]
    truth = loss(torch.zeros_like(z), residual[0], moment[0]) - float(gain.max())
    assert loss(z, residual[0], moment[0]) == pytest.approx(truth, rel=1e-9)


def test_rounds_pay_where_inputs_are_correlated():
    residual, moment = problem(24, 24, layers=8)

    def left(**rounds: int) -> torch.Tensor:
        compensation = COMPENSATIONS.get("unstructured_sparse")(budget=0.1, **rounds)
        z = compensation.dense(compensation.closed_form(residual, moment))
        return squared_error(z, residual, moment)

    assert left(rounds=8).mean() < 0.95 * left(rounds=1).mean()
    assert torch.equal(left(), left(rounds=8))
