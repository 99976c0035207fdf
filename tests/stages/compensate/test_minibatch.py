import copy

import pytest
import torch

from lowrank_vit.stages.compensate import COMPENSATIONS
from lowrank_vit.stages.compensate.inputs import SeededBatches
from lowrank_vit.stages.compensate.minibatch import LAST, compensate_minibatch
from lowrank_vit.stages.compensate.solve import by_shape, solve
from tests.support.compensation_problems import LAYERS, Toy, toy_images, toy_inputs, toy_problem
from tests.support.hardware import on_cpu

NAMES = COMPENSATIONS.names()
every_kind = pytest.mark.parametrize("kind", NAMES)
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
    assert list(one) == list(two)
    for name in one:
        torch.testing.assert_close(one[name].dense(), two[name].dense(), **tolerance)


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


def adam(tensor, gradient, state, step):
    mean, square = (
        state.setdefault("mean", torch.zeros_like(tensor)),
        state.setdefault("square", torch.zeros_like(tensor)),
    )
    mean.mul_(0.9).add_(0.1 * gradient)
    square.mul_(0.999).add_(0.001 * gradient**2)
    tensor -= 1e-2 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)


def sgd(tensor, gradient, state, step):
    tensor -= 1e-2 * gradient


@pytest.mark.parametrize("move", [adam, sgd])
def test_minibatches_follow_equations_11_and_12_as_printed(toy, move):
    """Both optimisers by hand on the gradients of the paper, image by image, with its A and B divided by the norm."""
    model, images, residuals, moments = toy
    found = run(toy, steps=9, batch_size=6, seed=5, optimizer=move.__name__)
    inputs = toy_inputs(model, images)
    for group in by_shape(residuals, moments):
        start = group.start(LOW_RANK, 5)
        for index, name in enumerate(group.names):
            g, y = start.trainable["g"][index].clone(), start.trainable["y"][index].clone()
            states = {}, {}
            for step, batch in enumerate(SeededBatches(len(images), 6, 9, 5, lambda: 0), 1):
                gradient = [torch.zeros_like(g), torch.zeros_like(y)]
                for a in inputs[name][batch]:
                    difference = a @ g @ y.T - a @ residuals[name]
                    gradient[0] += 2 / 6 * a.T @ difference @ y
                    gradient[1] += 2 / 6 * difference.T @ a @ g
                for tensor, own, state in zip((g, y), gradient, states, strict=True):
                    move(tensor, own, state, step)
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
    monkeypatch.setattr(
        "lowrank_vit.stages.compensate.minibatch.REMEMBERED_BYTES", 0
    )  # a pass to find out, and one for each step
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
