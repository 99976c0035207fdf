"""What the report says of Z, against equation (10) worked out image by image from the model's own inputs."""

import pytest
import torch
from torch import Tensor

from lowrank_vit import compress
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.methods.svd import PlainSVD
from lowrank_vit.records.report import z_summary
from lowrank_vit.stages.allocate.rules import Uniform
from lowrank_vit.stages.compensate import COMPENSATIONS
from tests.support.cases import few, in_turn
from tests.support.models import images, inputs_of, tiny

SOLVERS = ("closed_form", "moments", "minibatch")


def recipe(kind: str | None, solver: str) -> Recipe:
    """Plain SVD, so that the residual is known without the package."""
    plain = Recipe(name="plain", units={"decomposition": PlainSVD()}, allocator=Uniform(), solver=solver, steps=60)
    return plain.but(compensation=kind, budget=None if kind is None else 0.1)


def equation_10(inputs: list[Tensor], weight: Tensor, approximation: Tensor) -> float:
    """Mean over images of ``||X_i (W - W^)||_F^2 / ||X_i W||_F^2``."""
    ratios = [((x @ (weight - approximation)).norm() / (x @ weight).norm()) ** 2 for x in inputs]
    return float(torch.stack(ratios).mean())


@pytest.mark.parametrize(("solver", "kind"), few(in_turn(SOLVERS, COMPENSATIONS.names()), 3))
def test_losses_of_z_are_equation_10(kind: str, solver: str) -> None:
    model, data = tiny().double(), images(12).double()
    compressed, report = compress(model, [data], recipe(kind, solver), 0.3)
    layers = [layer for layer in report["layers"] if layer["rank"] is not None]
    assert len(layers) > 4
    for layer in layers:
        name, z = layer["name"], layer["z"]
        inputs = [inputs_of(model, [name], image[None])[name][0] for image in data]
        weight = model.get_submodule(name).weight.detach().T
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        cut = u[:, : layer["rank"]] * s[: layer["rank"]] @ vt[: layer["rank"]]
        assert z["loss_before"] == pytest.approx(equation_10(inputs, weight, cut), rel=1e-6)
        deployed = compressed.get_submodule(name)
        with torch.no_grad():
            product = deployed(torch.eye(len(weight), dtype=torch.float64)) - deployed.up.bias
        assert z["loss"] == pytest.approx(equation_10(inputs, weight, product), rel=1e-5)
        assert z["loss_closed_form"] <= z["loss"] * (1 + 1e-9) < z["loss_before"]


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
