import copy
import itertools

import pytest
import torch

from lowrank_vit.stages.compensate import COMPENSATIONS
from lowrank_vit.stages.compensate.inputs import SeededBatches
from lowrank_vit.stages.compensate.minibatch import LAST, compensate_minibatch
from lowrank_vit.stages.compensate.solve import by_shape, solve
from tests.support.cases import in_turn
from tests.support.compensation_problems import (
    LAYERS,
    SHAPES,
    Toy,
    loss,
    make,
    problem,
    toy_images,
    toy_inputs,
    toy_problem,
)
from tests.support.hardware import on_cpu
from tests.support.processes import become

NAMES = COMPENSATIONS.names()
every_kind = pytest.mark.parametrize("kind", NAMES)


def layers(deficient: bool = False):
    residuals, moments = {}, {}
    for index, (n, d) in enumerate([*SHAPES, SHAPES[1]]):
        residual, moment = problem(n, d, seed=index, deficient=deficient)
        residuals[f"blocks.{index}"], moments[f"blocks.{index}"] = residual[0], moment[0]
    return residuals, moments


@pytest.mark.parametrize(("kind", "solver"), in_turn(NAMES, ["closed_form", "moments", "moments", "closed_form"]))
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


def test_processes_share_each_batch(monkeypatch):
    whole, shares = batches_of(20, 8, 6, 1), []
    for rank in range(3):
        become(monkeypatch, rank, 3)
        shares.append(batches_of(20, 8, 6, 1))
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(itertools.chain(*parts)) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


LOW_RANK = COMPENSATIONS.get("low_rank")(budget=0.4)


@pytest.fixture(scope="module")
def toy():
    model, images = Toy(), toy_images()
    return model, images, *toy_problem(model, images)


def run(toy, compensation=LOW_RANK, images=None, **options):
    model, own, residuals, moments = toy
    options = on_cpu(**{"steps": 12, "lr": 1e-2} | options)
    return compensate_minibatch(model, compensation, residuals, moments, own if images is None else images, **options)


def assert_same(one, two, **tolerance):
    left, right = ({name: each.dense() for name, each in found.items()} for found in (one, two))
    torch.testing.assert_close(left, right, **tolerance)


@every_kind
def test_the_full_batch_is_the_exact_loss(toy, kind):
    _, _, residuals, moments = toy
    compensation = COMPENSATIONS.get(kind)(budget=0.4)
    found = run(toy, compensation, steps=30, record_every=7)
    truth = solve(compensation, residuals, moments, "moments", steps=30, lr=1e-2, record_every=7)
    assert_same(found, truth, rtol=1e-7, atol=1e-10)
    for name in LAYERS:
        assert [step for step, _ in found[name].curve] == [0, 7, 14, 21, 28]
        assert found[name].curve[0][1] == pytest.approx(found[name].loss_before)
        assert dict(found[name].curve) == pytest.approx(dict(truth[name].curve))
        assert found[name].loss_after == pytest.approx(truth[name].loss_after)
        assert found[name].loss_after < found[name].loss_before


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_minibatches_follow_equations_11_and_12_as_printed(toy, optimizer):
    """The gradients of the paper, image by image, with its A and B divided by the norm; steps with torch's defaults."""
    model, images, residuals, moments = toy
    found = run(toy, steps=9, batch_size=6, seed=5, optimizer=optimizer.__name__.lower())
    inputs = toy_inputs(model, images)
    for group in by_shape(residuals, moments):
        start = group.start(LOW_RANK, 5)
        for index, name in enumerate(group.names):
            g, y = start.trainable["g"][index].clone(), start.trainable["y"][index].clone()
            steps = optimizer([g, y], lr=1e-2)
            for batch in SeededBatches(len(images), 6, 9, 5, lambda: 0):
                g.grad, y.grad = torch.zeros_like(g), torch.zeros_like(y)
                for a in inputs[name][batch]:
                    difference = a @ g @ y.T - a @ residuals[name]
                    g.grad += 2 / 6 * a.T @ difference @ y
                    y.grad += 2 / 6 * difference.T @ a @ g
                steps.step()
            torch.testing.assert_close(found[name].dense(), g @ y.T, rtol=1e-7, atol=1e-10)


class PreemptedError(Exception):
    pass


def preempt_after(model: Toy, steps: int) -> Toy:
    model, calls = copy.deepcopy(model), []

    def count(module, inputs):
        calls.append(1)
        if len(calls) > steps:
            raise PreemptedError

    model.register_forward_pre_hook(count)
    return model


@pytest.mark.slow
def test_an_interrupted_run_goes_on(toy, tmp_path, monkeypatch):
    # a pass to find out, and one for each step
    monkeypatch.setattr("lowrank_vit.stages.compensate.minibatch.REMEMBERED_BYTES", 0)
    model, images, residuals, moments = toy
    options = {"steps": 25, "batch_size": 5, "record_every": 4}
    tmp_path = tmp_path / "new"
    straight = run(toy, **options)
    with pytest.raises(PreemptedError):
        run((preempt_after(model, 17), images, residuals, moments), checkpoint_dir=tmp_path, **options)
    done = torch.load(tmp_path / LAST, weights_only=True)["global_step"]
    assert done == 15
    resumed = run((preempt_after(model, 11), images, residuals, moments), checkpoint_dir=tmp_path, **options)
    assert_same(resumed, straight, rtol=0, atol=0)
    assert resumed["map"].curve == straight["map"].curve
    finished = run((preempt_after(model, 0), images, residuals, moments), checkpoint_dir=tmp_path, **options)
    assert_same(finished, straight, rtol=0, atol=0)


@pytest.mark.slow
def test_two_processes_equal_one(toy):
    options = {"batch_size": 5, "steps": 15, "record_every": 3}  # shares of three and two images
    one = run(toy, **options)
    two = run(toy, devices=2, **options)
    assert_same(one, two, rtol=1e-7, atol=1e-10)
    for name in LAYERS:
        assert dict(one[name].curve) == pytest.approx(dict(two[name].curve))
