"""What the teacher is shown and says: mirrored and cropped images, outputs of blocks, and what is remembered."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from lowrank_vit import InputError
from lowrank_vit.stages.quantize.weights import quantize
from lowrank_vit.stages.training import teacher
from lowrank_vit.stages.training.finetune import finetune
from lowrank_vit.stages.training.teacher import augment
from tests.support import finetuning
from tests.support.distilling import IMAGES, run, student
from tests.support.hardware import on_cpu
from tests.support.models import VIT, images, tiny
from tests.support.weights import same


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
        ({"logit_weight": -1.0}, "negative"),
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
    with pytest.raises(InputError, match="are the same object"):
        run(model, dense=model)


def modes(model: nn.Module) -> list[bool]:
    """Whether the model was in training mode, each time that one of its modules is called from now on."""
    seen: list[bool] = []
    for module in model.modules():
        module.register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    return seen


def noisy_and_quiet() -> tuple[nn.Module, nn.Module]:
    """The same teacher twice, with dropout and in training mode, and without."""
    noisy = timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.5, proj_drop_rate=0.5, **VIT)
    quiet = timm.create_model("vit_tiny_patch16_224", **VIT).eval()
    noisy.load_state_dict(tiny().state_dict())
    quiet.load_state_dict(noisy.state_dict())
    return noisy.train(), quiet


@pytest.mark.parametrize("options", [{"epochs": 1}, {"epochs": 3}, {"epochs": 1, "crop_scale": (0.6, 1.0)}])
def test_the_teacher_of_a_distillation_is_asked_without_dropout(options: dict[str, Any]) -> None:
    noisy, quiet = noisy_and_quiet()
    seen, models = modes(noisy), [student() for _ in range(2)]
    for model, dense in zip(models, (noisy, quiet), strict=True):
        run(model, dense=dense, held_out=images(5, seed=2), **options)
    assert seen
    assert not any(seen)
    assert noisy.training  # as it was
    assert same(*models)


@pytest.mark.parametrize("full", [False, True])
def test_the_teacher_of_a_fine_tune_is_asked_without_dropout(full: bool) -> None:
    noisy, quiet = noisy_and_quiet()
    seen, models = modes(noisy), [finetuning.tiny() for _ in range(2)]
    for model, dense in zip(models, (noisy, quiet), strict=True):
        finetune(model, finetuning.TinyData(), teacher=dense, full=full, **on_cpu(epochs=1, lr=1e-2))
    assert seen
    assert not any(seen)
    assert noisy.training  # as it was
    assert same(*models)
