"""Distillation on the calibration images: the loss by hand, what is trained, what a run depends on, and that it goes on."""

import logging
import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn

from lowrank_vit import InputError
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.stages.training.distill import Distillation, feature_error
from tests.support.distilling import IMAGES, run, student
from tests.support.models import images, same, tiny, weights
from tests.support.power_cuts import PowerCutError, interrupt


class Says(nn.Module):
    """A timm model's two halves, of which the answers are given."""

    def __init__(self, features: list[list[float]], logits: list[list[float]]) -> None:
        super().__init__()
        self.features, self.logits = nn.Parameter(torch.tensor(features)), nn.Parameter(torch.tensor(logits))

    def forward_features(self, batch: Tensor) -> Tensor:
        return self.features[: len(batch), None]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return features if pre_logits else self.logits[: len(features)]


def test_the_loss_by_hand() -> None:
    # p = (3/4, 1/4) against q = (1/2, 1/2), and twice the same
    dense = Says([[3.0, 4.0], [0.0, 2.0]], [[math.log(3), 0.0], [1.0, 1.0]])
    small = Says([[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [5.0, 5.0]])
    kl = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    error = ((4 + 16) / 25 + 1 / 4) / 2
    two = torch.zeros(2, 1, 1, 1)
    assert feature_error(small.features, dense.features).item() == pytest.approx(error, rel=1e-6)
    for weight in (0.0, 2.0):
        module = Distillation(small, dense, two, feature_weight=weight)
        loss, seen = module.loss(two, (dense.features[:, None], dense.logits))
        assert loss.item() == pytest.approx(kl + weight * error, rel=1e-5)
        assert seen.item() == pytest.approx(kl, rel=1e-5)
    # features alone, as GFM has it: the logits count for nothing, but their divergence is still told
    module = Distillation(small, dense, two, logit_weight=0, block_weight=0)
    loss, seen = module.loss(two, (dense.features[:, None], dense.logits))
    assert (loss.item(), seen.item()) == (pytest.approx(error, rel=1e-5), pytest.approx(kl, rel=1e-5))
    # at temperature 2: p = (r, 1) / (r + 1) with r = sqrt(3)
    p = math.sqrt(3) / (math.sqrt(3) + 1)
    softer = (p * math.log(2 * p) + (1 - p) * math.log(2 - 2 * p)) / 2
    loss, seen = Distillation(small, dense, two, feature_weight=0, temperature=2).loss(
        two, (dense.features[:, None], dense.logits)
    )
    assert loss.item() == pytest.approx(4 * softer, rel=1e-5)
    assert seen.item() == pytest.approx(kl, rel=1e-5)


def test_muon_steps_as_far_in_each_direction_and_leaves_vectors_to_adamw() -> None:
    def steps(optimizer: str) -> dict[str, Tensor]:
        before = dict(student().named_parameters())
        after = run(student(), images(20), epochs=1, warm_up=0, lr=1e-3, optimizer=optimizer).model.named_parameters()
        return {name: (parameter - before[name]).detach() for name, parameter in after}

    muon, adamw = steps("muon"), steps("adamw")
    matrices = [name for name, step in muon.items() if step.ndim == 2 and min(step.shape) >= 4]  # narrower: AdamW
    assert matrices
    for name in matrices:
        values = torch.linalg.svdvals(muon[name])
        largest = 1e-3 * 0.2 * max(muon[name].shape) ** 0.5  # the size of AdamW's steps
        assert values.max() < 1.3 * largest, name
        assert values[: len(values) // 2].min() > 0.6 * largest, name
        assert torch.linalg.svdvals(adamw[name]).max() > 2 * largest, name  # which has no such bound
    vectors = [name for name, step in muon.items() if step.ndim == 1]
    assert vectors
    for name in vectors:  # by signs: with Nesterov's momentum the first step is nearly twice as long
        assert torch.equal(muon[name].sign(), adamw[name].sign()), name
    with pytest.raises(InputError, match="unknown optimizer 'soup': choose from adamw, muon"):
        run(student(), optimizer="soup")


def test_the_blocks_errors_by_their_definition() -> None:
    dense, small, batch = tiny(), student(), images(3)
    x = y = None
    errors = []
    with torch.no_grad():
        for index in range(len(dense.blocks)):
            if index == 0:
                x, y = (model.norm_pre(model._pos_embed(model.patch_embed(batch))) for model in (dense, small))
            x, y = dense.blocks[index](x), small.blocks[index](y)
            errors.append(((x - y).square().sum((1, 2)) / x.square().sum((1, 2))).mean().item())
        target = Classification().targets(dense, batch, blocks=True)
        losses = [
            Distillation(small, dense, batch, block_weight=weight)
            .loss(batch, target[: None if weight else 2])[0]
            .item()
            for weight in (0, 3)
        ]
    assert len(errors) == 2
    assert losses[1] - losses[0] == pytest.approx(3 * sum(errors) / len(errors), rel=1e-4)


def test_a_mixture_is_an_image_and_a_share_of_another_each_as_it_was_augmented() -> None:
    data = images(3)
    module = Distillation(student(), tiny(), data, mix=0.4)
    module._draws = torch.tensor([[0.1], [0.9], [0.9]]).expand(3, 4)  # the first is mirrored
    module._partners, module._shares = torch.tensor([2, 0, 1]), torch.tensor([0.5, 1.0, 0.0])
    mirrored = torch.stack([data[0].flip(-1), data[1], data[2]])
    wanted = [0.8 * mirrored[0] + 0.2 * mirrored[2], 0.6 * mirrored[1] + 0.4 * mirrored[0], mirrored[2]]
    found = module._mixed(mirrored, torch.arange(3))
    torch.testing.assert_close(found, torch.stack(wanted))
    torch.testing.assert_close(module._mixed(mirrored[1:], torch.tensor([1, 2])), torch.stack(wanted[1:]))


def test_the_teacher_answers_for_mixtures_which_are_others_in_every_epoch() -> None:
    model, dense, seen = student(), tiny(), {"student": list[Tensor](), "teacher": list[Tensor]()}
    for name, each in (("student", model), ("teacher", dense)):
        each.patch_embed.register_forward_pre_hook(lambda module, inputs, name=name: seen[name].append(inputs[0]))
    run(model, dense=dense, epochs=3, mix=0.5, flips=False)
    steps = seen["student"][-6:]  # two in each epoch
    assert all(any(torch.equal(step, other) for other in seen["teacher"]) for step in steps)
    shown = torch.cat(steps).flatten(1)
    assert len(shown.unique(dim=0)) == len(shown) == 120
    assert (torch.cdist(shown, IMAGES.flatten(1)) > 1e-3).any(1).all()
    assert (torch.cdist(shown, IMAGES.flatten(1)).min(1).values > 1e-3).float().mean() > 0.9


def test_everything_is_trained_but_the_teacher_and_the_buffers() -> None:
    model, dense = student().train(), tiny().train()
    model.register_buffer("fixed", torch.ones(3))
    model.pos_embed.requires_grad_(False)
    flags, before, taught = [p.requires_grad for p in model.parameters()], weights(model), weights(dense)
    state = torch.get_rng_state()
    module = run(model, dense=dense, weight_decay=0.1)
    assert torch.equal(torch.get_rng_state(), state)
    trained = {name for name, _ in model.named_parameters()}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) is (name not in trained), name
    assert same(dense, taught)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any(each.training for each in model.modules())
    assert dense.training  # as it was
    assert all(p.grad is None for p in dense.parameters())
    assert module.trainer.global_step == 6
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == 0


def test_where_unseen_images_diverge_more_the_weights_stay(caplog: pytest.LogCaptureFixture) -> None:
    before, worse, better = student(), student(), student()
    with caplog.at_level(logging.WARNING):
        entry = run(worse, epochs=1, vector_lr=1.0, held_out=images(16, seed=9)).describe()
    assert entry["kl_held_out"]["after"] > entry["kl_held_out"]["before"]
    assert entry["kept"] == "before"
    assert same(worse, before)
    (line,) = [record.getMessage() for record in caplog.records if "stay as they were" in record.getMessage()]
    assert f"rose from {entry['kl_held_out']['before']:.4f} to {entry['kl_held_out']['after']:.4f}" in line
    free = student()
    entry = run(free, epochs=1, vector_lr=1.0, held_out=images(16, seed=9), restore=False).describe()
    assert entry["kl_held_out"]["after"] > entry["kl_held_out"]["before"]
    assert "kept" not in entry
    assert not same(free, before)
    good = run(better, epochs=1, lr=1e-5, vector_lr=1e-4, held_out=images(16, seed=9))
    assert not good.risen
    assert "kept" not in good.describe()
    assert not same(better, before)


@pytest.mark.slow
@pytest.mark.parametrize("augmented", [{}, {"crop_scale": (0.6, 1.0)}, {"mix": 0.5}])
def test_interrupted_and_resumed_equals_undisturbed(
    augmented: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**augmented, "held_out": images(10, seed=2)}
    undisturbed, model = student(), student()
    whole = run(undisturbed, checkpoint_dir=tmp_path / "a", **options)
    with monkeypatch.context() as patched:
        interrupt(patched, Distillation, 1)
        with pytest.raises(PowerCutError):
            run(model, checkpoint_dir=tmp_path / "b", **options)
    torch.manual_seed(99)  # the state of the caller's generator must not matter
    model = student()
    resumed = run(model, checkpoint_dir=tmp_path / "b", **options)
    assert same(model, undisturbed)
    assert resumed.describe() == whole.describe()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["last.ckpt"]
    # a finished run is not repeated
    again = student()
    finished = run(again, checkpoint_dir=tmp_path / "b", **options)
    assert same(again, undisturbed)
    assert finished.describe() == whole.describe()
    saved = torch.load(tmp_path / "b" / "last.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == {f"model.{name}" for name in model.state_dict()} | {"last_kl", "kl_held_out"}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    # float64: the key's bias has no gradient but rounding, which AdamW would turn into whole steps
    alone, together, dense = student().double(), student().double(), tiny().double()
    options = {"epochs": 2, "precision": "64-true", "crop_scale": (0.6, 1.0), "held_out": images(9, seed=2).double()}
    one = run(alone, IMAGES.double(), dense, **options)
    two = run(together, IMAGES.double(), dense, devices=2, checkpoint_dir=tmp_path, **options)
    torch.testing.assert_close(weights(together), weights(alone), rtol=1e-9, atol=1e-9)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
    a, b = one.describe(), two.describe()
    assert b["train_kl"] == pytest.approx(a["train_kl"], rel=1e-6)
    assert b["kl_held_out"] == pytest.approx(a["kl_held_out"], rel=1e-6)


def test_a_batch_that_two_processes_cannot_share_is_refused() -> None:
    module = Distillation(student(), tiny(), IMAGES, batch_size=15)
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with patch.object(Trainer, "world_size", 2), pytest.raises(InputError, match="15 images cannot be shared by 2"):
        module.train_dataloader()
