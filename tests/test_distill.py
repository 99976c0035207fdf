"""Distillation on the calibration images: the loss by hand, what is trained, what a run depends on."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from lowrank_vit import InputError, compress, load, save, teacher
from lowrank_vit.cli import main
from lowrank_vit.data import ImageData
from lowrank_vit.data.records import NO_LABEL, ImageSplit
from lowrank_vit.distill import Distillation, distill, feature_error, warm_up_cosine
from lowrank_vit.evaluate import evaluate
from lowrank_vit.models import load_model
from lowrank_vit.quantize import quantize
from lowrank_vit.report import divergence
from lowrank_vit.teacher import augment
from tests.models import VIT, images, tiny
from tests.test_cli import json_of, refused

IMAGES = images(45)  # two batches of twenty, and five that are left out


@functools.cache
def _compressed() -> nn.Module:
    return compress(tiny(), [images(32)], "exact", 0.5)[0]


def student() -> nn.Module:
    return copy.deepcopy(_compressed())


def run(model: nn.Module, data: Tensor = IMAGES, dense: nn.Module | None = None, **options: Any) -> Distillation:
    settings = {"epochs": 3, "lr": 1e-3, "accelerator": "cpu", "progress": False, **options}
    return distill(model, dense or tiny(), data, **settings)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


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
    # at temperature 2: p = (r, 1) / (r + 1) with r = sqrt(3)
    p = math.sqrt(3) / (math.sqrt(3) + 1)
    softer = (p * math.log(2 * p) + (1 - p) * math.log(2 - 2 * p)) / 2
    loss, seen = Distillation(small, dense, two, feature_weight=0, temperature=2).loss(
        two, (dense.features[:, None], dense.logits)
    )
    assert loss.item() == pytest.approx(4 * softer, rel=1e-5)
    assert seen.item() == pytest.approx(kl, rel=1e-5)


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
        target = teacher.outputs(dense, batch, blocks=True)
        losses = [
            Distillation(small, dense, batch, block_weight=weight)
            .loss(batch, target[: None if weight else 2])[0]
            .item()
            for weight in (0, 3)
        ]
    assert len(errors) == 2
    assert losses[1] - losses[0] == pytest.approx(3 * sum(errors) / len(errors), rel=1e-4)


def test_warm_up_then_cosine() -> None:
    factors = [warm_up_cosine(step, 12, 0.17) for step in range(13)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert factors[7] == pytest.approx(0.5)
    assert factors[12] == 0
    assert all(a > b for a, b in itertools.pairwise(factors[2:]))
    assert warm_up_cosine(0, 1, 0.99) == 1


def test_half_of_the_images_are_mirrored_and_none_where_that_changes_their_meaning() -> None:
    batch, draws = images(2), torch.tensor([[0.4, 0.5, 0.5, 0.5], [0.6, 0.5, 0.5, 0.5]])
    assert torch.equal(augment(batch, draws, True, None), torch.stack([batch[0].flip(-1), batch[1]]))
    assert torch.equal(augment(batch, draws, False, None), batch)


def test_a_crop_of_a_ramp_is_a_part_of_the_ramp() -> None:
    across = (torch.arange(32) + 0.5) / 16 - 1  # -1 to 1
    ramp = torch.stack([across.expand(32, 32), across[:, None].expand(32, 32)])[None]
    draws = torch.tensor([[0.9, 0.5, 0.75, 0.25]])
    cropped = augment(ramp, draws, True, (0.16, 0.56))  # the area 0.36: sides of 0.6, off by 0.4 times +-0.5
    # bicubic weights keep a straight line to a tenth of a pixel, and less well at the border
    inside = (slice(3, 29), slice(3, 29))
    assert torch.allclose(cropped[0, 0][inside], (0.6 * ramp[0, 0] + 0.2)[inside], atol=5e-3)
    assert torch.allclose(cropped[0, 1][inside], (0.6 * ramp[0, 1] - 0.2)[inside], atol=5e-3)
    assert torch.allclose(augment(images(1), draws, False, (1.0, 1.0)), images(1), atol=1e-4)


def test_a_step_reduces_the_loss() -> None:
    model, dense = student(), tiny()
    target = tuple(output.detach() for output in teacher.outputs(dense, IMAGES, blocks=True))
    before = Distillation(model, dense, IMAGES).loss(IMAGES, target)[0]
    module = run(model, epochs=1, batch_size=45, lr=1e-4, vector_lr=1e-4, flips=False)
    assert module.trainer.global_step == 1
    assert module.loss(IMAGES, target)[0] < 0.999 * before


def test_matrices_and_vectors_have_learning_rates_of_their_own() -> None:
    """The first step of Adam is as long as its learning rate in every number."""
    model = student().double()
    before = weights(model)
    run(model, IMAGES.double(), tiny().double(), epochs=1, batch_size=45, lr=1e-4, vector_lr=1e-2, precision="64-true")
    for name, parameter in model.named_parameters():
        step = (parameter - before[name]).abs().max().item()
        assert step == pytest.approx(1e-2 if parameter.ndim == 1 else 1e-4, rel=0.05), name


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
    assert all(torch.equal(value, taught[name]) for name, value in dense.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any(each.training for each in model.modules())
    assert dense.training  # as it was
    assert all(p.grad is None for p in dense.parameters())
    assert module.trainer.global_step == 6
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == 0


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_smaller_heads_and_position_tables_are_trained_too(kind: str) -> None:
    dense = tiny(kind)
    model, _ = compress(dense, [images(32, kind)], "best", 0.4)
    before = weights(model)
    run(model, images(40, kind), dense, epochs=1)
    assert kind == "vit" or any("position_bias_table" in name for name in before)
    assert not any(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_dropout_is_off() -> None:
    torch.manual_seed(0)
    noisy = timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.5, proj_drop_rate=0.5, **VIT)
    quiet = timm.create_model("vit_tiny_patch16_224", **VIT)
    quiet.load_state_dict(noisy.state_dict())
    run(noisy, epochs=1)
    run(quiet, epochs=1)
    assert same(noisy, quiet)


def test_what_the_teacher_said_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    models, asked = [student() for _ in range(2)], []
    for model, size in zip(models, (2**30, 0), strict=True):
        monkeypatch.setattr(teacher, "KNOWN_BYTES", size)
        dense, count = tiny(), []
        dense.blocks[0].register_forward_hook(lambda module, args, out, count=count: count.append(len(out)))
        run(model, dense=dense)
        asked.append(sum(count))
    # once about one image to compare shapes, once more for the size; then 2 x 45 images against 3 x 40
    assert asked == [2 + 90, 2 + 120]
    for name, value in models[0].state_dict().items():
        assert torch.allclose(value, models[1].state_dict()[name], rtol=1e-3, atol=1e-4), name


class PowerCutError(RuntimeError):
    """In the middle of an epoch."""


def interrupt(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    step = Distillation.training_step

    def crash(self: Distillation, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.current_epoch == epoch and batch_idx == 1:
            raise PowerCutError
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Distillation, "training_step", crash)


@pytest.mark.parametrize("crop_scale", [None, (0.6, 1.0)])
def test_interrupted_and_resumed_equals_undisturbed(
    crop_scale: tuple[float, float] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"crop_scale": crop_scale, "held_out": images(10, seed=2)}
    undisturbed, model = student(), student()
    whole = run(undisturbed, checkpoint_dir=tmp_path / "a", **options)
    with monkeypatch.context() as patched:
        interrupt(patched, 1)
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


def test_the_seed_decides() -> None:
    one, other, another = student(), student(), student()
    run(one, seed=1)
    run(other, seed=1)
    run(another, seed=2)
    assert same(one, other)
    assert not same(one, another)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run(student(), epochs=1, checkpoint_dir=tmp_path)
    for message, options in {
        "lr=0.001, not 0.002": {"lr": 2e-3},
        "inputs_sha256": {"data": images(45, seed=9)},
        "held_out_images=0, not 3": {"held_out": images(3)},
    }.items():
        with pytest.raises(InputError, match=message):
            run(student(), epochs=1, checkpoint_dir=tmp_path, **options)
    changed = student()
    changed.cls_token.data += 1
    with pytest.raises(InputError, match="inputs_sha256"):
        run(changed, epochs=1, checkpoint_dir=tmp_path)
    run(changed, epochs=1, checkpoint_dir=tmp_path, resume=False)


def wide(classes: int = 10, width: int = 16) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", **{**VIT, "num_classes": classes, "embed_dim": width})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "positive"),
        ({"lr": -1.0}, "positive"),
        ({"vector_lr": 0.0}, "positive"),
        ({"batch_size": 0}, "positive"),
        ({"temperature": 0.0}, "positive"),
        ({"feature_weight": -1.0}, "negative"),
        ({"warm_up": 1.0}, "warm_up"),
        ({"gradient_clip": 0.0}, "gradient_clip"),
        ({"crop_scale": (0.6, 1.2)}, "crop_scale"),
        ({"data": IMAGES[0]}, "needs .N, C, H, W."),
        ({"data": IMAGES[:0]}, "at least one"),
        ({"dense": wide(classes=11)}, r"teacher's logits are \(11,\), the model's \(10,\)"),
        ({"dense": wide(width=32)}, r"teacher's features are \(32,\), the model's \(16,\)"),
        ({"dense": nn.Conv2d(1, 1, 1)}, "timm"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        run(student(), **options)
    assert "\n" not in str(caught.value)


def test_neither_a_quantised_model_nor_the_teacher_itself_is_distilled() -> None:
    quantised, _ = quantize(student(), 8)
    with pytest.raises(InputError, match="then quantise that"):
        run(quantised)
    model = student()
    with pytest.raises(InputError, match="teacher is the student"):
        run(model, dense=model)


def test_the_entry_of_the_report() -> None:
    model, dense, unseen = student(), tiny(), images(30, seed=2)
    before = divergence(dense, model, [unseen])
    entry = run(model, dense=dense, held_out=unseen, crop_scale=(0.6, 1.0), seed=3).describe()
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert entry["kl_held_out"]["before"] == pytest.approx(before, rel=1e-5)
    assert entry["kl_held_out"]["after"] == pytest.approx(divergence(dense, model, [unseen]), rel=1e-5)
    assert entry["train_kl"] > 0
    assert entry["trained_parameters"] == entry["parameters"] == sum(p.numel() for p in model.parameters())
    expected = {"optimizer": "AdamW", "lr": 1e-3, "weight_decay": 0.0, "batch_size": 20, "epochs": 3, "images": 45}
    expected |= {"held_out_images": 30, "crop_scale": [0.6, 1.0], "flips": True, "seed": 3, "precision": "32-true"}
    assert entry.items() >= expected.items()
    assert run(student(), epochs=1).describe()["kl_held_out"] is None


class Unlabelled:
    """A split of which the labels cannot be looked at."""

    def __init__(self, split: ImageSplit) -> None:
        self.split, self.content = split, split.content

    @property
    def labels(self) -> list[int]:
        raise AssertionError("the labels were read")

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.split[index][0], NO_LABEL


def test_no_label_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = load_model("digits_deit_small")
    save(compress(dense, [images(8)], "svd", 0.5)[0], tmp_path / "small")
    command = ["distill", str(tmp_path / "small"), "--data", "digits", "--calibration-samples", "40", "--epochs", "1"]
    main([*command, "--out", str(tmp_path / "labelled")])
    labelled = ImageData("digits", resolve_model_data_config(dense)).source
    splits = {name: Unlabelled(labelled.split(name)) for name in ("train", "validation")}
    monkeypatch.setattr(ImageData, "source", dataclasses.replace(labelled, num_classes=None, **splits))
    main([*command, "--out", str(tmp_path / "unlabelled")])
    assert same(load(tmp_path / "labelled"), load(tmp_path / "unlabelled"))


def test_distilled_digits_are_much_better_than_cut_ones() -> None:
    dense = load_model("digits_deit_base")
    data = ImageData("digits", resolve_model_data_config(dense), calibration_samples=512)
    calibration = data.calibration_tensor()
    model, _ = compress(dense, [calibration], "svd", 0.6)
    before = evaluate(model, data, accelerator="cpu", progress=False)["top1"]
    entry = run(model, calibration, dense, lr=1e-3, flips=False, held_out=data.held_out_tensor()).describe()
    after = evaluate(model, data, accelerator="cpu", progress=False)["top1"]
    assert after > before + 30  # seen: from 47.6 to 94.0
    assert entry["train_kl"] < entry["kl_held_out"]["after"] < 0.2 * entry["kl_held_out"]["before"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small, out = tmp_path / "small", tmp_path / "distilled"
    save(compress(load_model("digits_deit_small"), [images(64)], "exact", 0.4)[0], small)
    command = ["distill", str(small), "--data", "digits", "--calibration-samples", "64", "--epochs", "1"]
    with monkeypatch.context() as patched:
        interrupt(patched, 0)
        with pytest.raises(PowerCutError):
            main([*command, "--out", str(out)])
    assert not out.exists()
    capsys.readouterr()
    main([*command, "--held-out-samples", "50", "--out", str(out)])
    captured = capsys.readouterr()
    assert f"saved to {out}" in captured.out
    assert "Epoch 0/0" in captured.err
    report, before = json_of(capsys, "inspect", out), json_of(capsys, "inspect", small)
    entry = report["distillation"]
    assert report["protocol"] == "calibration-distilled"
    assert (report["params"], report["layers"]) == (before["params"], before["layers"])
    assert (entry["images"], entry["batch_size"], entry["flips"]) == (64, 20, False)
    assert (entry["lr"], entry["vector_lr"]) == (1e-5, 3e-3)
    assert entry["calibration"]["samples"] == 64
    assert entry["kl_held_out"]["after"] < entry["kl_held_out"]["before"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["distilled", "small"]
    assert json_of(capsys, "evaluate", out, "--data", "digits")["top1"] > 50
    assert "exists already" in refused(capsys, *command, "--out", out)
    eight, other = tmp_path / "eight", ("--out", tmp_path / "other")
    main(["quantize", str(out), "--bits", "8", "--out", str(eight)])
    capsys.readouterr()
    assert "then quantise that" in refused(capsys, "distill", eight, "--data", "digits", *other)
    line = refused(capsys, *command, "--learning-rate", "-1", *other)
    assert "lr" in line
    assert not list(tmp_path.glob("*other*"))


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    # float64: the key's bias has no gradient but rounding, which AdamW would turn into whole steps
    alone, together, dense = student().double(), student().double(), tiny().double()
    options = {"epochs": 2, "precision": "64-true", "crop_scale": (0.6, 1.0), "held_out": images(9, seed=2).double()}
    one = run(alone, IMAGES.double(), dense, **options)
    two = run(together, IMAGES.double(), dense, devices=2, checkpoint_dir=tmp_path, **options)
    moved = weights(together)
    for name, value in weights(alone).items():
        assert torch.allclose(moved[name], value, rtol=1e-9, atol=1e-9), name
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
    a, b = one.describe(), two.describe()
    assert b["train_kl"] == pytest.approx(a["train_kl"], rel=1e-6)
    assert b["kl_held_out"] == pytest.approx(a["kl_held_out"], rel=1e-6)
    with pytest.raises(InputError, match="cannot be shared by 2 processes"):
        run(student(), devices=2, batch_size=15)


def test_quiet_but_for_the_bar_on_the_error_stream(capfd: pytest.CaptureFixture[str]) -> None:
    run(student(), epochs=2, progress=True)
    out, err = capfd.readouterr()
    assert not out
    assert "Epoch 1/1" in err
    assert "Tip" not in err
