"""What the figures measure, against dense truths, and files of a given size, none of which is larger than asked for."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import MEASURES, measured
from experiments.jobs.memory import DigitsInMemory
from experiments.measures import at_bytes
from experiments.tables.table4b import WAYS
from lowrank_vit import compare, quantize
from lowrank_vit.compression.compress import analyse
from lowrank_vit.compression.recipes import get_recipe
from lowrank_vit.models import STANDINS
from lowrank_vit.modules.counting import parameter_count, saved_bytes
from lowrank_vit.modules.quantized_linear import QuantizedLinear
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.images import Images
from tests.support.models import inputs_of, stirred

STEPS = 20  # of Z's gradient solvers


def dense(name: str = "digits_deit_small") -> nn.Module:
    """Untrained, with weights large enough that every layer matters."""
    torch.manual_seed(0)
    assert name in STANDINS
    return stirred(timm.create_model(name).eval())


def job_for(measure: str, model: str = "digits_deit_small", seed: int = 0, **fields: Any) -> Job:
    recipe, reduction = ("paper", 0.5) if measure == "compensation" else (None, 0.0)
    fields = {"calibration_samples": 64, "held_out_samples": 32, "limit": 64, "epochs": 0} | fields
    if recipe:
        fields["changes"] = {"solver": "moments", "steps": STEPS} | fields.pop("changes", {})
    return Job(model, True, "digits", "1297+500", recipe, reduction, seed, measure=measure, **fields)


def data_for(model: nn.Module, job: Job) -> DigitsInMemory:
    names = ("calibration_samples", "held_out_samples", "limit", "seed")
    return DigitsInMemory("digits", resolve_model_data_config(model), **{name: getattr(job, name) for name in names})


def run(measure: str, model: nn.Module, job: Job) -> dict[str, Any]:
    """A measurement, whose result survives JSON."""
    said: list[str] = []
    with TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "stages.json", said.append)
        found = MEASURES.get(measure).run(model, data_for(model, job), job, ledger)
    assert said
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


EXACT = 2e-5  # the results have five decimals, the models float32


def inputs(model: nn.Module, layer: str, batches: Any) -> Tensor:
    """All inputs of a layer, (images, tokens, n), float64."""
    return torch.cat([inputs_of(model, [layer], images)[layer].double() for images, _ in batches])


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


ROUNDING = {"bits": at_bytes.bits, "each": at_bytes.bits_by_layer, "turn": at_bytes.in_turn, "once": at_bytes.at_once}


@pytest.mark.slow
@pytest.mark.parametrize("measure", WAYS)
def test_a_file_is_no_larger_than_asked_for(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dense()
    size = int(1.02 * at_bytes.stored(quantize(model, 8, outside=8)[0]))
    monkeypatch.setattr(at_bytes, "IN_TURN", (8,))
    job = replace(job_for(measure), recipe="heads", reduction=1 - size / saved_bytes(model, torch.float32))
    assert at_bytes.allowed(model, job) == size
    found = run(measure, model, job)
    assert 0.9 * size < found["stored_bytes"] <= size
    crude = compare(model, quantize(model, 2, outside=2)[0], data_for(model, job).held_out_dataloader())
    assert 0 <= found["kl"] < 0.5 * crude["kl"]


def rounded(small: nn.Module) -> set[str]:
    """Name the modules of the dense model of which a weight is rounded."""
    names = {name for name, module in small.named_modules() if isinstance(module, QuantizedLinear)}
    return {name.replace(".linear", "").removesuffix(".down").removesuffix(".up") for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("way", ROUNDING)
def test_all_ways_may_round_the_same_layers(way: str) -> None:
    """At a size that asks for few bits everywhere, patch embedding and classifier are rounded in every way."""
    torch.manual_seed(0)
    shape = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 32, "num_classes": 100}
    model = timm.create_model("vit_tiny_patch16_224", **shape).eval()
    size = int(1.02 * at_bytes.stored(quantize(model, 2, outside=8)[0]))
    job = replace(job_for("bytes_at_once"), recipe="heads")
    seen, unseen = (Images([torch.randn(12, 3, 32, 32)], None) for _ in range(2))
    small = ROUNDING[way](model, seen, unseen, size, job)
    assert {"patch_embed.proj", "head"} <= rounded(small)
    assert sum(name.startswith("blocks.") for name in rounded(small)) >= 4 * len(model.blocks)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_parameters_of_a_cut_model_are_counted(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = dense()
    job = replace(job_for("bytes_by_ranks"), recipe="heads", reduction=0.75)
    result = measured(job, model, data_for(model, job), "cpu", Ledger(tmp_path / "stages.json", lambda said: None))
    assert result["params"]["dense"] == parameter_count(model)
    assert result["params"]["compressed"] < 0.6 * parameter_count(model)
    assert result["measured"]["stored_bytes"] > 2 * result["params"]["compressed"]
    assert "hits" not in result["measured"]
    assert result["hits"]
