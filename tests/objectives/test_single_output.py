"""A model with one output: its KL over classes would always be 0, and no class number can score it."""

import pytest
import torch
from torch import nn

import lowrank_vit
from lowrank_vit.objectives import objective_for
from lowrank_vit.objectives.classification import Classification, distillation_loss, without_classifier
from lowrank_vit.objectives.features import Features
from lowrank_vit.stages.evaluate.accuracy import evaluate
from lowrank_vit.stages.evaluate.comparison import compare
from tests.support.hardware import on_cpu
from tests.support.models import images, tiny


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
