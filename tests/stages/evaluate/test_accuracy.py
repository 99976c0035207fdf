import base64
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from lowrank_vit.stages.evaluate.accuracy import evaluate, shard
from lowrank_vit.stages.evaluate.comparison import compare
from tests.support.hardware import on_cpu
from tests.support.models import images as random_images
from tests.support.models import tiny
from tests.support.processes import become

IMAGES = 65


def tiny_data(images: int = IMAGES) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(10, (images,), generator=generator)
    return TensorDataset(torch.randn(images, 1, 8, 8, generator=generator), labels)


def run(model: torch.nn.Module, data: DataLoader | LightningDataModule, **options: object) -> dict:
    return evaluate(model, data, **on_cpu(**options))


class Sharding(LightningDataModule):
    """As the package's own data module: indices rank::world, no padding."""

    def val_dataloader(self) -> DataLoader:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return DataLoader(tiny_data(), batch_size=8, sampler=range(rank, IMAGES, world))


@pytest.mark.parametrize("batch_size", [8, 65])
def test_scores_equal_a_direct_computation(batch_size: int) -> None:
    model, data = tiny(), tiny_data()
    images, labels = data.tensors
    logits = model.eval()(images)
    order = logits.argsort(dim=-1, descending=True)
    result = run(model, DataLoader(data, batch_size=batch_size))
    assert result.keys() == {"top1", "top5", "loss", "n"}
    assert result["n"] == IMAGES
    assert isinstance(result["n"], int)
    assert result["top1"] == pytest.approx(100 * (order[:, 0] == labels).double().mean().item())
    assert result["top5"] == pytest.approx(100 * (order[:, :5] == labels[:, None]).any(1).double().mean().item())
    assert result["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)


def test_beside_the_dense_model_both_see_every_image_once() -> None:
    """The same numbers as each alone, and as the comparison has them."""
    model, dense, data, seen = tiny(), tiny(), tiny_data(), []
    dense.head.weight.data = -2 * model.head.weight.data.roll(1, 0)
    loader = DataLoader(data, batch_size=4)
    alone = [run(each, loader) for each in (model, dense)]
    expected = compare(dense, model, loader)
    for name, each in (("small", model), ("dense", dense)):
        each.register_forward_pre_hook(lambda module, x, name=name: seen.extend([name] * len(x[0])))
    found = run(model, loader, dense=dense)
    assert sorted(seen) == ["dense"] * IMAGES + ["small"] * IMAGES
    assert {name: found[name] for name in alone[0]} == pytest.approx(alone[0])
    assert found["top1_dense"] == pytest.approx(alone[1]["top1"])
    assert {name: found[name] for name in ("agreement", "kl", "top1_dense")} == pytest.approx(
        {name: expected[name] for name in ("agreement", "kl", "top1_dense")}
    )
    assert found["kl"] > 0


def test_a_plain_loader_is_sharded_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = DataLoader(TensorDataset(torch.arange(IMAGES)), batch_size=8)
    seen: list[int] = []
    for rank in range(3):
        become(monkeypatch, rank, 3)
        share = shard(loader)
        assert shard(share) is share
        seen += torch.cat([batch for (batch,) in share]).tolist()
    assert sorted(seen) == list(range(IMAGES))


@pytest.mark.slow
def test_two_processes_count_every_image_once() -> None:
    # 33 images in five batches against 32 in four
    data = Sharding()
    alone, together = run(tiny(), data), run(tiny(), data, devices=2)
    assert together["n"] == IMAGES
    assert together == pytest.approx(alone, rel=1e-12)


def test_the_hits_are_those_of_the_images_in_order() -> None:
    """Counted by hand, image by image, over batches of unequal size; nothing is added unless it is asked for."""
    model, data = tiny().eval(), tiny_data(23).tensors[0]
    with torch.no_grad():
        labels = model(data).argmax(-1)
    labels[::3] = (labels[::3] + 1) % 10
    batches = [(data[:16], labels[:16]), (data[16:], labels[16:])]
    found = run(model, batches, hits=True)
    bits = np.unpackbits(np.frombuffer(base64.b64decode(found["hits"]), np.uint8))[:23]
    assert bits.tolist() == [int(place % 3 != 0) for place in range(23)]
    assert found["top1"] == pytest.approx(100 * bits.mean())
    assert "hits" not in run(model, batches)


def test_images_that_are_not_normalised_are_told_with_the_remedy() -> None:
    with pytest.warns(
        UserWarning, match=r"as if they were not normalised .*: prepare them by timm\.data\.create_transform"
    ):
        compare(tiny(), tiny(), [random_images(20).sigmoid()])


def test_labels_that_are_hit_by_chance_only_are_told_of() -> None:
    """By the dense model's hits where there is one: a smaller model may have lost them by itself."""
    model, images, told = tiny().eval(), tiny_data().tensors[0], r"no more than by chance \(10 %\)"
    hit, worse = model(images).argmax(-1), tiny()
    worse.head.weight.data *= -1
    wrong = (hit + 1) % 10
    with warnings.catch_warnings(action="error"):
        run(model, [(images, hit)])
        run(worse, [(images, hit)], dense=model)
        run(model, [(images[:8], wrong[:8])])  # too few to tell
    for measure in (
        lambda: run(model, DataLoader(TensorDataset(images, wrong), batch_size=8)),
        lambda: run(worse, [(images, wrong)], dense=model),
        lambda: compare(model, worse, [(images, wrong)]),
    ):
        with pytest.warns(UserWarning, match=told):
            measure()
