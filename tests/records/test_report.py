"""What the report says of Z, against equation (10) worked out image by image from the model's own inputs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import compress
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.methods.svd import PlainSVD
from lowrank_vit.records.report import LayerEntry, largest_size, overfit_entry, z_summary
from lowrank_vit.stages.allocate.rules import Uniform
from lowrank_vit.stages.compensate import COMPENSATIONS
from tests.support.models import images, tiny

SOLVERS = ("closed_form", "moments", "minibatch")


def recipe(kind: str | None, solver: str) -> Recipe:
    """Plain SVD, so that the residual is known without the package."""
    plain = Recipe(name="plain", units={"decomposition": PlainSVD()}, allocator=Uniform(), solver=solver, steps=60)
    return plain.but(compensation=kind, budget=None if kind is None else 0.1)


def inputs_by_image(model: nn.Module, name: str, data: Tensor) -> list[Tensor]:
    """X_i of a layer, (tokens, n), each image alone."""
    kept: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda module, given, output: kept.append(given[0][0]))
    with torch.no_grad():
        for image in data:
            model(image[None])
    hook.remove()
    return kept


def equation_10(inputs: list[Tensor], weight: Tensor, approximation: Tensor) -> float:
    """Mean over images of ``||X_i (W - W^)||_F^2 / ||X_i W||_F^2``."""
    return float(
        torch.stack([((x @ (weight - approximation)).norm() / (x @ weight).norm()) ** 2 for x in inputs]).mean()
    )


def of_z(report: dict[str, Any], field: str) -> list[float]:
    return [layer["z"][field] for layer in report["layers"] if layer["z"] is not None]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", COMPENSATIONS.names())
def test_losses_of_z_are_equation_10(kind: str, solver: str) -> None:
    model, data = tiny().double(), images(12).double()
    compressed, report = compress(model, [data], recipe(kind, solver), 0.3)
    layers = [layer for layer in report["layers"] if layer["rank"] is not None]
    assert len(layers) > 4
    for layer in layers:
        name, z = layer["name"], layer["z"]
        inputs, weight = inputs_by_image(model, name, data), model.get_submodule(name).weight.detach().T
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        cut = u[:, : layer["rank"]] * s[: layer["rank"]] @ vt[: layer["rank"]]
        assert z["loss_before"] == pytest.approx(equation_10(inputs, weight, cut), rel=1e-6)
        deployed = compressed.get_submodule(name)
        with torch.no_grad():
            product = deployed(torch.eye(len(weight), dtype=torch.float64)) - deployed.up.bias
        assert z["loss"] == pytest.approx(equation_10(inputs, weight, product), rel=1e-5)
        assert z["loss_closed_form"] <= z["loss"] * (1 + 1e-9) < z["loss_before"]


@pytest.mark.parametrize("kind", COMPENSATIONS.names())
def test_the_least_loss_is_that_of_a_run_in_closed_form(kind: str) -> None:
    data = images(12)
    _, exact = compress(tiny(), [data], recipe(kind, "closed_form"), 0.3)
    summary = z_summary(exact["layers"])
    assert summary is not None
    assert summary["gap"] == 0
    for solver in SOLVERS[1:]:
        _, report = compress(tiny(), [data], recipe(kind, solver), 0.3)
        assert of_z(report, "loss_closed_form") == pytest.approx(of_z(exact, "loss"), rel=1e-9)
        descended = z_summary(report["layers"])
        assert descended is not None
        assert descended["gap"] >= -1e-9
        assert descended["overhead"] == summary["overhead"] <= 0.1 + 1 / 16


@pytest.mark.parametrize("solver", SOLVERS)
def test_curves_begin_without_z(solver: str) -> None:
    _, report = compress(tiny(), [images(12)], recipe("low_rank", solver), 0.3)
    entry = report["compensation"]
    assert json.loads(json.dumps(entry)) == entry
    if solver == "closed_form":
        assert entry == {"solver": solver, "optimizer": None, "steps": None, "curves": {}}
        return
    assert (entry["solver"], entry["optimizer"], entry["steps"]) == (solver, "adam", 60)
    with_z = {layer["name"]: layer["z"] for layer in report["layers"] if layer["z"] is not None}
    assert entry["curves"].keys() == with_z.keys()
    for name, curve in entry["curves"].items():
        assert [step for step, _ in curve] == [0, 50]
        # twelve images are one batch, so the first loss is that of all images
        assert curve[0][1] == pytest.approx(with_z[name]["loss_before"], rel=1e-4)


def test_without_z_there_is_nothing_to_say() -> None:
    _, report = compress(tiny(), [images(12)], recipe(None, "closed_form"), 0.3)
    assert report["compensation"] is None
    assert z_summary(report["layers"]) is None


def test_the_summary_worked_by_hand() -> None:
    def layer(params: int, before: float, loss: float, least: float) -> dict:
        z = {"kind": "diagonal", "params": params, "loss_before": before, "loss": loss, "loss_closed_form": least}
        return {"in_features": 10, "out_features": 20, "z": z}

    dense = {"in_features": 99, "out_features": 99, "z": None}
    summary = z_summary([layer(10, 0.5, 0.3, 0.2), dense, layer(30, 0.3, 0.2, 0.2)])
    assert summary == {
        "kind": "diagonal",
        "overhead": pytest.approx(40 / 400),
        "loss_before": pytest.approx(0.4),
        "loss": pytest.approx(0.25),
        "gap": pytest.approx(0.25),
    }
    summary = z_summary([layer(10, 0.0, 0.0, 0.0)])
    assert summary is not None
    assert summary["gap"] is None


def test_the_overfit_worked_by_hand() -> None:
    """The mean of the reduced layers alone, and nothing where there is nothing to compare."""

    def layer(rank: int | None, seen: float, unseen: float | None) -> LayerEntry:
        shape = {"name": "x", "in_features": 2, "out_features": 2, "rank": rank, "z": None, "params": 4}
        return {**shape, "relative_error": seen, "relative_error_held_out": unseen}

    found = overfit_entry([layer(1, 0.1, 0.2), layer(1, 0.3, 0.3), layer(None, 0.0, 0.0)])
    assert found == pytest.approx({"relative_error": 0.2, "relative_error_held_out": 0.25, "ratio": 1.25})
    assert overfit_entry([layer(1, 0.1, None)]) is None
    assert overfit_entry([layer(None, 0.0, 0.0)]) is None
    assert overfit_entry([layer(1, 0.0, 0.0)]) is None


@pytest.mark.parametrize("name", ["exact", "best"])
def test_every_report_with_unseen_images_has_it(name: str) -> None:
    _, report = compress(tiny(), [images(8)], name, 0.3, held_out=[images(8) + 1], device="cpu")
    means = [
        sum(layer[kind] for layer in report["layers"] if layer["rank"] is not None)
        for kind in ("relative_error", "relative_error_held_out")
    ]
    assert report["overfit"]["ratio"] == pytest.approx(means[1] / means[0])


def test_the_largest_size_of_a_layer() -> None:
    layer = {"in_features": 192, "out_features": 192}
    assert largest_size(layer) == 192
    assert largest_size({**layer, "details": {"ridge": 0.0}}) == 192
    assert largest_size({**layer, "details": {"hidden": 694, "hidden_of": 768}}) == 768
    assert largest_size({**layer, "details": {"query_key_of": 384, "value": 3, "value_of": 96}}) == 96
