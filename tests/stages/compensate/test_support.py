"""Which entries of a sparse Z are kept: the best single ones by trying all, and greedily from there."""

import pytest
import torch

from lowrank_vit.stages.compensate import COMPENSATIONS, squared_error
from tests.support.compensation_problems import every_shape, loss, make, problem, root


@every_shape
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


@every_shape
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
