"""What the figures measure, against dense truths."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit.compression.compress import analyse
from lowrank_vit.compression.recipes import get_recipe
from lowrank_vit.records.curves import RankPlan
from tests.experiments.support.untrained import data_for, dense, job_for, run

EXACT = 2e-5  # the results have five decimals, the models float32


def inputs(model: nn.Module, layer: str, batches: Any) -> Tensor:
    """All inputs of a layer, (images, tokens, n), float64."""
    caught: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, x, y: caught.append(x[0].double()))
    with torch.inference_mode():
        for images, _ in batches:
            model(images)
    handle.remove()
    return torch.cat([x.reshape(len(x), -1, x.shape[-1]) for x in caught])


def truncated(weight: Tensor, rank: int) -> Tensor:
    """Eckart and Young."""
    u, s, vt = torch.linalg.svd(weight)
    return u[:, :rank] * s[:rank] @ vt[:rank]


@pytest.fixture(scope="module")
def energy() -> dict[str, Any]:
    return run("energy", dense(), job_for("energy"))


@pytest.fixture(scope="module")
def errors() -> dict[str, Any]:
    return run("compensation", dense(), job_for("compensation"))


def test_the_measured_loss_is_the_divergence_of_the_one_part() -> None:
    model, job = dense(), job_for("loss", calibration_samples=64)
    found = run("loss", model, job)["parts"]["blocks.1.mlp.hidden"]["measured"][1]
    data, hidden = data_for(model, job), model.blocks[1].mlp.fc1.out_features
    images = data.held_out_tensor()
    batches = [batch for batch, *_ in data.calibration_dataloader()]
    analysis = analyse(model, batches, get_recipe("best").but(refit=False), seed=0, device="cpu")
    plan = {curve.name: None for curve in analysis.curves} | {"blocks.1.mlp.hidden": hidden // 2}
    small, _ = analysis.apply(RankPlan(plan))
    with torch.inference_mode():
        p, q = (each(images).double().softmax(-1) for each in (model, small))
    assert found == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), abs=1e-8)  # as rounded


@pytest.mark.parametrize("images", ["calibration", "unseen"])
def test_energies_against_the_images_themselves(energy: dict[str, Any], images: str) -> None:
    model, job = dense(), job_for("energy")
    data = data_for(model, job)
    batches = data.calibration_dataloader() if images == "calibration" else data.held_out_dataloader()
    x = inputs(model, "blocks.0.mlp.fc1", batches)
    weight = model.get_submodule("blocks.0.mlp.fc1").weight.detach().double().T
    found = energy["layers"]["mlp.fc1"]["methods"]["svd"]
    for rank in (1, 7, 20):
        lost = (x @ (weight - truncated(weight, rank))).square().sum() / (x @ weight).square().sum()
        assert found[images][rank] == pytest.approx(float(1 - lost), abs=EXACT)
        squares = torch.linalg.svdvals(weight).square()
        assert found["own"][rank] == pytest.approx(float(squares[:rank].sum() / squares.sum()), abs=EXACT)


@pytest.mark.slow
def test_accuracy_against_a_model_cut_by_hand() -> None:
    model, job = dense(), job_for("accuracy_by_block")
    found = run("accuracy_by_block", model, job)
    assert found["n"] == 64
    assert found["removed"] == [25, 50, 75, 90]
    assert list(found["top1"]["svd"]) == list(found["top1"]["whitened"]) == ["blocks.0", "blocks.1", "blocks.2"]
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        linear = model.get_submodule(f"blocks.1.{layer}")
        linear.weight.data = truncated(linear.weight.data.double(), 12).float()
    hits = count = 0
    with torch.inference_mode():
        for images, labels in data_for(model, job).val_dataloader():
            hits += int((model(images).argmax(1) == labels).sum())
            count += len(labels)
    assert count == 64
    assert found["top1"]["svd"]["blocks.1"][1] == pytest.approx(100 * hits / 64, abs=0.01)


@pytest.mark.parametrize("images", ["calibration", "unseen"])
def test_errors_against_the_images_themselves(errors: dict[str, Any], images: str) -> None:
    model, job = dense(), job_for("compensation")
    data = data_for(model, job)
    batches = data.calibration_dataloader() if images == "calibration" else data.held_out_dataloader()
    x = inputs(model, "blocks.2.attn.proj", batches)
    weight = model.get_submodule("blocks.2.attn.proj").weight.detach().double().T
    lost = (x @ (weight - truncated(weight, 6))).square().sum((1, 2)) / (x @ weight).square().sum((1, 2))
    assert errors["methods"]["svd"][images][2] == pytest.approx(float(lost.mean()), abs=EXACT)
