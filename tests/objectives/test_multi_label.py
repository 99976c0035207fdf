"""Several labels for an image: each keeps its own probability, and none competes with another."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lowrank_vit import compress, get_recipe, load, save
from lowrank_vit.objectives import objective_for
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.objectives.multi_label import MultiLabel
from lowrank_vit.records.images import Images
from tests.support.cases import few
from tests.support.models import images, tiny

SEVERAL = (torch.rand(24, 10, generator=torch.Generator().manual_seed(0)) < 0.3).float()
ONE = torch.eye(10)[torch.arange(24) % 10]


def test_divergence_and_probe_by_hand() -> None:
    objective = MultiLabel()
    dense, small = torch.tensor([[2.0, -1.0, 0.3]]), torch.tensor([[1.0, -0.5, 0.0]])
    p, q = (torch.sigmoid(each.double()) for each in (dense, small))
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
    found = objective.divergence(objective.reading(dense), objective.reading(small))
    assert found == pytest.approx(expected.item())
    assert objective.pull(small, dense, 1.0) == pytest.approx(expected.item(), rel=1e-5)
    squares = []
    for seed in range(400):
        logits = dense.clone().requires_grad_()
        objective.probe(logits, torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(seed)), seed).backward()
        assert logits.grad is not None
        squares.append(logits.grad[0].outer(logits.grad[0]))
    fisher = torch.diag((p * (1 - p))[0].float())
    torch.testing.assert_close(torch.stack(squares).mean(0), fisher, atol=0.03, rtol=0)


def batches(labels: Tensor) -> list[Any]:
    return [*zip(images(24).split(8), labels.split(8), strict=True)]


def loader(labels: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images(24), labels), batch_size=8)


LABELS = {
    "several": (SEVERAL, True),
    "integers": (SEVERAL.long(), True),
    "one-hot": (ONE, False),
    "class numbers": (torch.arange(24) % 10, False),
    "no 0 or 1": (torch.rand(24, 10), False),
}


@pytest.mark.parametrize("form", [batches, loader])
@pytest.mark.parametrize(("labels", "several"), LABELS.values(), ids=LABELS)
def test_it_is_told_by_the_labels(form: Any, labels: Tensor, several: bool) -> None:
    state = torch.get_rng_state()
    assert Images.of(form(labels)).several_labels is several
    assert torch.equal(torch.get_rng_state(), state)


def test_images_alone_say_nothing() -> None:
    for form in (images(8), [images(8)], [{"pixel_values": images(8)}], iter([images(8)])):
        assert not Images(form).several_labels


@pytest.mark.parametrize("recipe", few(["loss_aware", "best"], 1))
def test_every_label_keeps_its_probability(recipe: str, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    model = tiny()
    with caplog.at_level(logging.WARNING):
        small, report = compress(model, loader(SEVERAL), recipe, 0.4, device="cpu")
    assert "several labels each" in caplog.text
    assert report["recipe_fields"]["objective"] == "multi_label"
    asked, _ = compress(model, [images(24)], get_recipe(recipe).but(objective="multi_label"), 0.4, device="cpu")
    other, _ = compress(model, [images(24)], recipe, 0.4, device="cpu")
    objective, data = MultiLabel(), images(64, seed=9)
    with torch.no_grad():
        dense = objective.reading(model(data))
        lost = [float(objective.divergence(dense, objective.reading(each(data)))) for each in (small, asked, other)]
    assert lost[0] == pytest.approx(lost[1], rel=0.05)
    assert lost[0] < lost[2]
    save(small, tmp_path / "it")
    assert load(tmp_path / "it")(data).shape == (64, 10)


def test_a_configuration_says_it() -> None:
    model = nn.Linear(4, 3)
    model.num_classes, model.config = 3, type("Config", (), {"problem_type": "multi_label_classification"})()  # type: ignore[assignment]
    assert isinstance(objective_for(model, Classification()), MultiLabel)
