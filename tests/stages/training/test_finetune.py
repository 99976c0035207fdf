"""The partial and the full fine-tune: what is trained, by which loss and which teacher, and that it can be interrupted."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from lowrank_vit.data import ImageData
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.training import teacher
from lowrank_vit.stages.training.finetune import (
    FullFineTune,
    PartialFineTune,
    finetune,
    partial_parameters,
    trainable_share,
)
from lowrank_vit.stages.training.teacher import align_factor, apart
from tests.support.distilling import run as distilled
from tests.support.distilling import student
from tests.support.finetuning import TinyData, tiny
from tests.support.hardware import on_cpu
from tests.support.image_folders import GREY, write
from tests.support.models import VIT, images, same, weights
from tests.support.models import tiny as tiny_timm


def run(model: nn.Module, data: LightningDataModule | None = None, **options: object) -> PartialFineTune:
    settings = {"epochs": 3, "lr": 1e-2, **options}
    return finetune(model, data or TinyData(), **on_cpu(**settings))


def test_selection_on_a_vit_with_low_rank_layers() -> None:
    names = partial_parameters(tiny())
    assert {"patch_embed.proj.weight", "head.weight", "norm.weight", "blocks.0.norm1.weight"} <= set(names)
    assert {"blocks.0.attn.qkv.up.bias", "blocks.0.attn.proj.bias"} <= set(names)
    rest = {name for name, _ in tiny().named_parameters()} - set(names)
    assert {"cls_token", "pos_embed", "blocks.0.attn.qkv.up.weight", "blocks.0.attn.qkv.down.weight"} <= rest
    assert all(name in ("cls_token", "pos_embed") or name.startswith("blocks.") for name in rest)


def test_trains_the_chosen_and_nothing_else() -> None:
    model = tiny().eval()
    model.pos_embed.requires_grad_(False)
    before, flags = weights(model), [p.requires_grad for p in model.parameters()]
    generator = torch.get_rng_state()
    module = run(model, TinyData(), seed=3)
    assert torch.equal(torch.get_rng_state(), generator)
    trained = set(partial_parameters(model))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) is (name not in trained), name
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not model.training
    assert module.trainer.global_step == 9
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == 0
    record = module.describe()
    assert 0 <= record["val_top1"] <= 100
    assert record["trainable_share"] == trainable_share(model)
    assert record["seed"] == 3
    assert record["weight_decay"] == 0
    assert record["label_smoothing"] == 0.1
    assert record["precision"] == "32-true"
    assert record["distilled"] is False


def test_loss_is_smoothed_cross_entropy_mixed_with_distillation() -> None:
    model, teacher = tiny(0.0), tiny(0.0)
    nn.init.normal_(teacher.head.weight)
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    plain = F.cross_entropy(model(images), labels, label_smoothing=0.1)
    assert torch.allclose(PartialFineTune(model).loss(images, labels), plain)
    mixed = PartialFineTune(model, teacher=teacher, distillation_weight=0.25, temperature=3).loss(images, labels)
    log_p, log_q = (each(images).div(3).log_softmax(-1) for each in (teacher, model))
    divergence = 9 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert torch.allclose(mixed, 0.75 * plain + 0.25 * divergence, rtol=1e-4)


def test_the_teacher_is_neither_trained_nor_saved(tmp_path: Path) -> None:
    model, teacher = tiny(), tiny(0.0)
    nn.init.normal_(teacher.head.weight)
    before = weights(teacher)
    module = run(model, teacher=teacher, epochs=1, checkpoint_dir=tmp_path)
    assert same(teacher, before)
    assert module.describe()["distilled"] is True
    assert module.describe()["parameters"] == sum(p.numel() for p in model.parameters())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == {f"model.{name}" for name in model.state_dict()} | {"last_top1"}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_and_resumed_equals_undisturbed(workers: int, tmp_path: Path) -> None:
    undisturbed, model = tiny(), tiny()
    run(undisturbed, TinyData(workers), checkpoint_dir=tmp_path / "a")
    with pytest.raises(RuntimeError, match="power cut"):
        run(model, TinyData(workers, crash=1), checkpoint_dir=tmp_path / "b")
    torch.manual_seed(99)  # the state of the caller's generator must not matter
    model = tiny()
    run(model, TinyData(workers), checkpoint_dir=tmp_path / "b")
    assert same(model, undisturbed)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["last.ckpt"]
    # a finished run is not repeated
    again = tiny()
    assert run(again, TinyData(workers), checkpoint_dir=tmp_path / "b").trainer.global_step == 9
    assert same(again, undisturbed)


class Exploit:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("exploited"),))


def test_a_checkpoint_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"hyper_parameters": {}, "state_dict": {}, "x": Exploit()}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="not a checkpoint of such a run"):
        run(tiny(), checkpoint_dir=tmp_path)
    assert not (tmp_path / "exploited").exists()


@pytest.mark.slow
def test_two_processes_equal_one_with_the_same_global_batch(tmp_path: Path) -> None:
    # float64: the key's bias has no gradient but rounding, which AdamW would turn into whole steps
    alone, model = tiny(0.0).double(), tiny(0.0).double()
    together = copy.deepcopy(model)
    data = TinyData(noise=0.0)
    options = {"epochs": 2, "precision": "64-true"}
    one = run(alone, data, **options)
    two = run(together, data, devices=2, checkpoint_dir=tmp_path, **options)
    torch.testing.assert_close(weights(together), weights(alone), rtol=1e-9, atol=1e-9)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6
    # 65 images on two processes: five batches against four
    assert two.val_top1 == pytest.approx(one.val_top1, rel=1e-6)


def test_free_choices_are_in_the_record(tmp_path: Path) -> None:
    """What the paper leaves open: optimiser, decay, smoothing, precision, batch, crops and flips; none for digits."""
    for split in ("train", "validation"):
        for rank in range(2):
            write(tmp_path / split / "ab"[rank], 10 * rank, 10 * rank + 1)
    crops = {"crop_area": [0.08, 1], "crop_ratio": [3 / 4, 4 / 3], "flips": 0.5, "interpolation": "bicubic"}
    for spec, augmentation in ((f"imagefolder:{tmp_path}", crops), ("digits", None)):
        data = ImageData(spec, GREY, batch_size=700, workers=0, limit=4)
        record = run(tiny(0.0), data, epochs=1).describe()
        expected = {"optimizer": "AdamW", "weight_decay": 0.0, "label_smoothing": 0.1, "precision": "32-true"}
        expected |= {"drop_path": 0.0, "processes": 1, "batch_size": 700, "augmentation": augmentation}
        assert {name: record[name] for name in expected} == expected
        assert json.loads(json.dumps(record)) == record


def test_what_the_teacher_said_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    models, asked = [student() for _ in range(2)], []
    for model, size in zip(models, (2**30, 0), strict=True):
        monkeypatch.setattr(teacher, "KNOWN_BYTES", size)
        dense, count = tiny_timm(), []
        dense.blocks[0].register_forward_hook(lambda module, args, out, count=count: count.append(len(out)))
        distilled(model, dense=dense)
        asked.append(sum(count))
    # once about one image to compare shapes, once more for the size; then 2 x 45 images against 3 x 40
    assert asked == [2 + 90, 2 + 120]
    torch.testing.assert_close(*map(weights, models), rtol=1e-3, atol=1e-4)


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
    noisy.load_state_dict(tiny_timm().state_dict())
    quiet.load_state_dict(noisy.state_dict())
    return noisy.train(), quiet


@pytest.mark.parametrize("options", [{"epochs": 3}, {"crop_scale": (0.6, 1.0)}, {"full": False}, {"full": True}])
def test_the_teacher_is_asked_without_dropout(options: dict[str, Any]) -> None:
    """Of a distillation, and of a fine-tune."""
    noisy, quiet = noisy_and_quiet()
    seen, models = modes(noisy), [tiny() if "full" in options else student() for _ in range(2)]
    for model, dense in zip(models, (noisy, quiet), strict=True):
        if "full" in options:
            run(model, teacher=dense, epochs=1, **options)
        else:
            distilled(model, dense=dense, held_out=images(5, seed=2), **{"epochs": 1, **options})
    assert seen
    assert not any(seen)
    assert noisy.training  # as it was
    assert same(*models)


LABELS = torch.arange(6) % 10


def block_outputs(model: nn.Module, data: Tensor) -> list[Tensor]:
    """Block by block."""
    x, seen = model._pos_embed(model.patch_embed(data)), []
    for block in model.blocks:
        x = block(x)
        seen.append(x)
    return seen


def test_the_weight_of_aligned_blocks() -> None:
    """A quarter of a cosine, from the weight to no less than 0.01, and nothing where nothing is asked for."""
    assert align_factor(0.5, 0, 10) == 0.5
    assert align_factor(0.5, 5, 10) == pytest.approx(0.5 * math.sqrt(0.5))
    assert align_factor(0.5, 10, 10) == 0.01
    assert align_factor(0.001, 10, 10) == 0.001


def test_first_and_last_blocks_are_compared_once() -> None:
    dense = [torch.zeros(2, 3)] * 6
    small = [torch.full((2, 3), float(place)) for place in range(6)]
    assert float(apart(small, dense)) == 0 + 1 + 16 + 25
    assert float(apart(small[:2], dense[:2])) == 1
    assert float(apart(small[:3], dense[:3])) == 0 + 1 + 4
    assert float(apart(small[4:5], dense[:1])) == 16


def test_hard_answers_and_aligned_blocks() -> None:
    model, teacher, data = tiny_timm(seed=1), tiny_timm(), images(6)
    hard = FullFineTune(model, teacher=teacher, hard_teacher=True, align_weight=0.5, label_smoothing=0.0)
    logits, answers = model(data), teacher(data).argmax(1)
    expected = (F.cross_entropy(logits, LABELS) + F.cross_entropy(logits, answers)) / 2
    pairs = zip(block_outputs(model, data), block_outputs(teacher, data), strict=True)
    expected = expected + 0.5 * sum((small - dense).square().mean() for small, dense in pairs)
    torch.testing.assert_close(hard.loss(data, LABELS), expected)
    hard.loss(data, LABELS).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
