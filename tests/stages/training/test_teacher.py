"""What the teacher is shown and says: mirrored and cropped images, outputs of blocks, and what is remembered."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from lowrank_vit.stages.training import teacher
from lowrank_vit.stages.training.finetune import finetune
from tests.support import finetuning
from tests.support.distilling import run, student
from tests.support.hardware import on_cpu
from tests.support.models import VIT, images, tiny
from tests.support.weights import same


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
