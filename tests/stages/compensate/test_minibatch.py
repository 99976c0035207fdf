import copy

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.compensate import COMPENSATIONS
from lowrank_vit.stages.compensate.inputs import SeededBatches, make_loader
from lowrank_vit.stages.compensate.minibatch import LAST, LayerwiseCompensation, compensate_minibatch
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


def test_a_layer_does_not_depend_on_the_layers_beside_it(toy):
    model, images, residuals, moments = toy
    together = run(toy, batch_size=5)
    for name in LAYERS:
        alone = run((model, images, {name: residuals[name]}, moments), batch_size=5)
        torch.testing.assert_close(alone[name].dense(), together[name].dense(), rtol=1e-9, atol=1e-12)


def test_a_step_is_a_step_and_the_model_is_not_part_of_it(toy):
    model, images, residuals, moments = toy
    groups = list(by_shape(residuals, moments))
    module = LayerwiseCompensation(model, LOW_RANK, groups, steps=7, batch_size=8)
    trainer = Trainer(
        max_steps=7,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        barebones=True,
    )
    trainer.fit(module, make_loader(images, SeededBatches(len(images), 8, 100, 0, lambda: 0)))
    assert trainer.global_step == 7
    assert len(trainer.optimizers) == 1
    count = sum(LOW_RANK.parameter_count(*residual.shape) for residual in residuals.values())
    assert sum(p.numel() for p in module.parameters()) == count
    assert sum(t.numel() for t in module.state_dict().values()) == count + module.curve.numel()
    assert module.curve.shape == (1, 4)
    assert not any(isinstance(child, nn.Linear) for child in module.modules())


def test_the_model_comes_back_as_it_was(toy):
    model, images, residuals, moments = toy
    model = copy.deepcopy(model).train()
    model.tokens.eval()
    model.map.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, torch.is_grad_enabled())))
    run((model, images, residuals, moments), steps=3)
    assert seen
    assert set(seen) == {(False, False)}
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert not any(getattr(model, name)._forward_hooks for name in LAYERS)


def test_float32_models_give_float64_solutions(toy):
    model, images, residuals, moments = toy
    single = run((copy.deepcopy(model).float(), images.float(), residuals, moments))
    double = run(toy)
    for name in LAYERS:
        assert single[name].dense().dtype == torch.float64
        assert single[name].loss_after == pytest.approx(double[name].loss_after, rel=1e-3)


def test_autocast_touches_the_model_only(toy):
    model, images, residuals, moments = toy
    single = copy.deepcopy(model).float()
    mixed = run((single, images.float(), residuals, moments), precision="bf16-mixed", steps=40)
    plain = run((single, images.float(), residuals, moments), steps=40)
    for name in LAYERS:
        assert mixed[name].loss_after == pytest.approx(plain[name].loss_after, rel=1e-2)


def test_a_loader_serves_as_well_as_a_tensor(toy):
    _, images, _, _ = toy
    loader = DataLoader(TensorDataset(images, torch.zeros(len(images))), batch_size=3, shuffle=True)
    assert_same(run(toy, batch_size=5), run(toy, images=loader, batch_size=5), rtol=0, atol=0)


@every_kind
def test_inputs_are_remembered_where_they_are_small(toy, kind, monkeypatch):
    model, images, *_ = toy
    calls = []
    handle = model.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    compensation = COMPENSATIONS.get(kind)(budget=0.4)
    remembered = run(toy, compensation, steps=9, batch_size=5)
    assert calls[0] == 1  # to learn how much it would be
    assert sum(calls[1:]) == len(images)
    calls.clear()
    monkeypatch.setattr("lowrank_vit.stages.compensate.minibatch.REMEMBERED_BYTES", 1000)
    seen_anew = run(toy, compensation, steps=9, batch_size=5)
    assert calls == [1] + 9 * [5]
    handle.remove()
    assert_same(remembered, seen_anew, rtol=1e-9, atol=1e-12)


def test_seeds_count_and_repeat(toy):
    one, again, other = run(toy, batch_size=5), run(toy, batch_size=5), run(toy, batch_size=5, seed=1)
    assert_same(one, again, rtol=0, atol=0)
    assert not torch.equal(one["map"].dense(), other["map"].dense())


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


def test_a_checkpoint_of_another_run_is_refused(toy, tmp_path):
    model, images, residuals, moments = toy
    run(toy, checkpoint_dir=tmp_path)
    with pytest.raises(InputError, match="another lr"):
        run(toy, checkpoint_dir=tmp_path, lr=1e-3)
    with pytest.raises(InputError, match="another compensation"):
        run(toy, COMPENSATIONS.get("diagonal")(), checkpoint_dir=tmp_path)
    changed = {name: 2 * residual for name, residual in residuals.items()}
    with pytest.raises(InputError, match="another residual_norms"):
        run((model, images, changed, moments), checkpoint_dir=tmp_path)
    (tmp_path / LAST).write_bytes(b"junk")
    with pytest.raises(InputError, match="not a checkpoint of a compensation"):
        run(toy, checkpoint_dir=tmp_path)


def test_loggers_get_the_curves(toy, tmp_path):
    logger = CSVLogger(tmp_path)
    found = run(toy, loggers=logger, record_every=4)
    logger.save()
    text = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    assert "compensation/map" in text[0]
    assert len(text) == 1 + len(found["map"].curve) == 4


def test_it_is_quiet(toy, capfd, recwarn):
    run(toy)
    assert "".join(capfd.readouterr()) == ""
    assert not recwarn.list


def test_the_bar_counts_steps(toy, capfd):
    run(toy, progress=True, steps=7)
    assert capfd.readouterr().err.startswith("fit Z ")
    assert "Epoch" not in capfd.readouterr().err


def test_bad_input_is_named(toy):
    model, images, residuals, moments = toy
    extra = {"head": residuals["map"]}, {"head": moments["map"]}
    with pytest.raises(InputError, match="no layer 'head'"):
        run((model, images, *extra))
    model = copy.deepcopy(model)
    model.head = nn.Identity()
    with pytest.raises(InputError, match="'head' is not a linear layer but Identity"):
        run((model, images, *extra))
    model.head = nn.Linear(18, 6).double()
    with pytest.raises(InputError, match="does not call its layer 'head'"):
        run((model, images, *extra))
    with pytest.raises(InputError, match="no moments"):
        run((model, images, residuals, {}))
    for options in ({"steps": 0}, {"lr": 0.0}, {"record_every": 0}, {"batch_size": 0}, {"devices": 17}):
        with pytest.raises(InputError):
            run(toy, **options)


@pytest.mark.slow
def test_two_processes_equal_one(toy):
    options = {"batch_size": 5, "steps": 15, "record_every": 3}  # shares of three and two images
    one = run(toy, **options)
    two = run(toy, devices=2, **options)
    assert_same(one, two, rtol=1e-7, atol=1e-10)
    for name in LAYERS:
        assert dict(one[name].curve) == pytest.approx(dict(two[name].curve))
