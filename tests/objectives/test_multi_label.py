"""Several labels for an image, none of which competes with another; and models with one output."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lowrank_vit
from lowrank_vit import InputError, compress, fewer_tokens, finetune, get_recipe, learn, load, save
from lowrank_vit.objectives import objective_for
from lowrank_vit.objectives.classification import Classification, distillation_loss, without_classifier
from lowrank_vit.objectives.features import Features
from lowrank_vit.objectives.labels import LabelLoss
from lowrank_vit.objectives.multi_label import MultiLabel
from lowrank_vit.records.images import Images
from lowrank_vit.stages.evaluate.accuracy import evaluate
from lowrank_vit.stages.evaluate.comparison import compare
from tests.support.cases import few
from tests.support.hardware import on_cpu
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
def test_it_is_told_by_the_labels(form: Any) -> None:
    state = torch.get_rng_state()
    for labels, several in LABELS.values():
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


def test_the_loss_of_labels_by_hand() -> None:
    model, logits = tiny(), torch.tensor([[0.7, -1.2], [0.1, 2.0]])
    model.head = nn.Linear(16, 2)
    several = (images(2), torch.tensor([[1, 1], [0, 1]]))
    loss = LabelLoss(model, 0.1)
    p = logits.double().sigmoid()
    yes = torch.tensor([[0.95, 0.95], [0.05, 0.95]], dtype=torch.float64)
    expected = -(yes * p.log() + (1 - yes) * (1 - p).log()).sum() / 2
    assert float(loss(logits, loss.targets(several))) == pytest.approx(float(expected), rel=1e-6)
    assert isinstance(loss.objective(several), MultiLabel)
    single = (images(2), torch.tensor([[0, 1], [1, 0]]))
    assert loss.targets(single).tolist() == [[0, 1], [1, 0]]  # as in the first batch
    with pytest.raises(InputError, match=r"pass a 0 or a 1 for each of 2 labels, of the shape \(2, 2\)"):
        loss.targets((images(2), torch.tensor([0, 1])))
    with pytest.raises(InputError, match=r"labels\.argmax\(1\)"):
        LabelLoss(model, 0.1).targets(single)


RIGHT = torch.cat([torch.ones(24, 3), torch.zeros(24, 7)], 1)  # what can be learnt from the first steps


def binary_loss(model: nn.Module) -> float:
    with torch.no_grad():
        return float(nn.functional.binary_cross_entropy_with_logits(model(images(24)), RIGHT))


QUIET: dict[str, Any] = {"epochs": 3, "lr": 1e-2, "progress": False}


@pytest.mark.parametrize("taught", few([True, False], 1))
def test_it_is_fine_tuned_label_by_label(taught: bool) -> None:
    model, before = tiny(), binary_loss(tiny())
    teacher = tiny() if taught else None
    trained = finetune(model, batches(RIGHT), teacher=teacher, distillation_weight=0.1, **QUIET)
    assert binary_loss(model) < 0.8 * before
    assert trained.val_top1 is None
    with pytest.raises(InputError, match="no single answer of a teacher"):
        finetune(tiny(), batches(RIGHT), teacher=tiny(), hard_teacher=True, **QUIET)


@pytest.mark.parametrize("taught", few([True, False], 1))
def test_gates_are_learnt_label_by_label(taught: bool) -> None:
    model, before = tiny(), binary_loss(tiny())
    learn(model, batches(RIGHT), "vtp", 0.3, teacher=tiny() if taught else None, distillation_weight=0.1, **QUIET)
    assert binary_loss(model) < 0.8 * before


def test_selectors_are_learnt_label_by_label() -> None:
    model = tiny()
    before = binary_loss(model)
    small = fewer_tokens(model, "spvit-kong", learn_on=batches(RIGHT), training=QUIET | {"lr": 0.5})
    assert binary_loss(small) < 0.8 * before


def single() -> nn.Module:
    model = tiny()
    model.reset_classifier(1)  # type: ignore[operator]
    return model.eval()


def test_its_squared_error_is_measured() -> None:
    model = single()
    assert "a single output" in without_classifier(model)
    assert isinstance(objective_for(model, Classification()), Features)
    small, _ = lowrank_vit.compress(model, [images(16)], "loss_aware", 0.4, device="cpu")
    found = compare(model, small, [images(16, seed=2)])
    assert found.keys() == {"n", "feature_error"}
    assert found["feature_error"] > 0
    assert evaluate(small, [(images(8), torch.zeros(8))], dense=model, **on_cpu())["feature_error"] > 0


def test_one_that_does_not_say_so_is_a_yes_or_a_no() -> None:
    objective, dense, small = Classification(), torch.tensor([[2.0], [0.5]]), torch.tensor([[1.0], [-0.5]])
    p, q = (torch.sigmoid(each.double()) for each in (dense, small))
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
    assert objective.divergence(objective.reading(dense), objective.reading(small)) == pytest.approx(expected.item())
    assert distillation_loss(small, dense, 1.0) == pytest.approx(expected.item() / 2, rel=1e-5)
    for sampling in ("labels", "signs"):
        logits = dense.clone().requires_grad_()
        Classification(sampling).probe(logits, torch.randn(2, 1, 4, 4), 0).backward()
        assert logits.grad is not None and logits.grad.abs().min() > 0  # noqa: PT018
