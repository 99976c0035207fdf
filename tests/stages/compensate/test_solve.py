import itertools

import pytest
import torch
import torch.distributed as dist

from lowrank_vit.stages.compensate import COMPENSATIONS
from lowrank_vit.stages.compensate.inputs import SeededBatches
from lowrank_vit.stages.compensate.solve import solve
from tests.support.compensation_problems import SHAPES, loss, make, problem

NAMES = COMPENSATIONS.names()
every_kind = pytest.mark.parametrize("kind", NAMES)


def layers(deficient: bool = False):
    residuals, moments = {}, {}
    for index, (n, d) in enumerate([*SHAPES, SHAPES[1]]):
        residual, moment = problem(n, d, seed=index, deficient=deficient)
        residuals[f"blocks.{index}"], moments[f"blocks.{index}"] = residual[0], moment[0]
    return residuals, moments


@pytest.mark.parametrize("solver", ["closed_form", "moments"])
@every_kind
def test_solutions_say_what_they_are(kind, solver):
    residuals, moments = layers()
    found = solve(make(kind), residuals, moments, solver, steps=40, record_every=10)
    assert list(found) == list(residuals)
    for name, solution in found.items():
        n, d = residuals[name].shape
        zero = torch.zeros(n, d, dtype=torch.float64)
        assert solution.loss_before == pytest.approx(loss(zero, residuals[name], moments[name]))
        assert solution.loss_after == pytest.approx(loss(solution.dense(), residuals[name], moments[name]))
        assert solution.loss_after < solution.loss_before
        assert solution.kind == kind
        assert solution.parameters == sum(p.numel() for p in solution.module().parameters())
        x = torch.randn(3, n, dtype=torch.float64)
        torch.testing.assert_close(solution.module()(x), x @ solution.dense())
        assert [step for step, _ in solution.curve] == ([0, 10, 20, 30] if solver == "moments" else [])
        if solver == "moments":
            assert solution.curve[0][1] == pytest.approx(solution.loss_before)


def test_gradient_descent_by_hand():
    """Z = diag(z) under (10): the slope of entry j is 2 M_jj (z_j - R_jj); from 0, at 0.1, to 0.4, 0.64 and 0.6, 1.08."""
    residuals = {"layer": torch.tensor([[1.0, 5.0], [7.0, 3.0]], dtype=torch.float64)}
    moments = {"layer": torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))}
    for steps, truth in ((1, [0.4, 0.6]), (2, [0.64, 1.08])):
        options = {"steps": steps, "lr": 0.1, "optimizer": "sgd"}
        found = solve(make("diagonal", 1.0), residuals, moments, "moments", **options)["layer"]
        torch.testing.assert_close(found.dense().diagonal(), torch.tensor(truth, dtype=torch.float64))


CONVEX = {"diagonal", "structured_sparse", "unstructured_sparse"}  # in their entries, the support being fixed


@every_kind
def test_gradient_descent_falls_towards_the_closed_form(kind):
    """With a step of 1/L, L = 2 max eigenvalue of M: never up, and within L ||Z*||^2 / 2t of the least loss where convex.

    A low-rank Z starts small, where its gradient is no steeper than that of Z itself.
    """
    residuals, moments = layers()
    residuals = {name: 0.05 * residual for name, residual in residuals.items()}
    closed = solve(make(kind), residuals, moments)
    for name in residuals:
        steepest = 2 * float(torch.linalg.eigvalsh(moments[name])[-1])
        one = {name: residuals[name]}
        options = {"steps": 400, "lr": 1 / steepest, "optimizer": "sgd", "record_every": 1}
        found = solve(make(kind), one, moments, "moments", **options)[name]
        losses = torch.tensor([loss for _, loss in found.curve] + [found.loss_after], dtype=torch.float64)
        assert (losses.diff() <= 1e-12).all()
        excess = losses - closed[name].loss_after
        assert excess.min() >= -1e-12
        assert excess[-1] < excess[0]
        if kind in CONVEX:
            bound = steepest * closed[name].dense().square().sum() / (2 * torch.arange(1, len(losses)))
            assert (excess[1:] <= bound + 1e-12).all()


def test_the_seed_counts_and_so_does_the_name():
    residual, moment = problem(12, 36)
    residuals, moments = {"a": residual[0], "b": residual[0]}, {"a": moment[0], "b": moment[0]}
    one, two = (solve(make("low_rank"), residuals, moments, "moments", steps=3, seed=seed) for seed in (0, 1))
    again = solve(make("low_rank"), residuals, moments, "moments", steps=3)
    assert torch.equal(one["a"].dense(), again["a"].dense())
    assert not torch.equal(one["a"].dense(), two["a"].dense())
    assert not torch.equal(one["a"].dense(), one["b"].dense())


def batches_of(count, batch_size, steps, seed):
    return list(SeededBatches(count, batch_size, steps, seed, lambda: 0))


def test_every_pass_sees_every_image_once_in_its_own_order():
    batches = batches_of(12, 4, 9, 0)
    assert [len(batch) for batch in batches] == [4] * 9
    passes = [list(itertools.chain(*batches[i : i + 3])) for i in (0, 3, 6)]
    assert all(sorted(order) == list(range(12)) for order in passes)
    assert passes[0] != passes[1] != passes[2] != list(range(12))


def test_a_run_goes_on_where_it_stopped():
    whole, resumed = batches_of(12, 4, 10, 3), SeededBatches(12, 4, 10, 3, lambda: 7)
    assert list(resumed) == whole[7:]
    assert len(resumed) == 10


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_batch(monkeypatch, world):
    whole = batches_of(20, 8, 6, 1)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        shares.append(batches_of(20, 8, 6, 1))
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(itertools.chain(*parts)) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
