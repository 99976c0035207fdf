"""What is run on a device that is not there: every recipe, and what is done with a model afterwards."""

import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowrank_vit
from lowrank_vit.compression.recipes import RECIPES
from lowrank_vit.objectives import divergences
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.stages.compensate import COMPENSATIONS
from lowrank_vit.stages.quantize import QUANTIZERS
from tests.support.models import ARGUMENTS, images, tiny
from tests.support.pretend import NAME, Away, Made, set_up

BATCHES = [images(12), images(12, seed=2)]
CALIBRATED = [name for name, recipe in RECIPES.items() if recipe.gradual is None]


def here(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors, on the CPU."""
    return {name: tensor.inner if isinstance(tensor, Away) else tensor for name, tensor in model.state_dict().items()}


def check_away(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert isinstance(tensor, Away), f"{name} is on {tensor.device}"


def check_same(found: nn.Module, expected: nn.Module, kind: str = "vit") -> None:
    """What the device makes is what the CPU makes, up to rounding."""
    data = images(5, kind, seed=3)
    with torch.no_grad():
        one = found(data.to(NAME))
        other = expected(data)
    torch.testing.assert_close(one.cpu(), other, rtol=1e-2, atol=1e-2)
    assert {name: tensor.shape for name, tensor in here(found).items()} == {
        name: tensor.shape for name, tensor in expected.state_dict().items()
    }


def recipes(*names: str) -> None:
    """Every recipe that needs calibration images alone: statistics, decompositions, plan, cut, Z, refit, errors."""
    failed = {}
    for name in names or CALIBRATED:
        recipe = RECIPES[name]
        recipe = recipe.but(solver="closed_form") if recipe.compensation is not None else recipe
        try:
            small, expected = (made(recipe, device, held_out=[images(8, seed=4)])[0] for device in (NAME, "cpu"))
            check_away(small)
            check_same(small, expected)
        except Exception as error:
            frames = [f"{each.name}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__)[-12:]]
            failed[name] = f"{type(error).__name__}: {error} at {' '.join(frames)}"
    assert not failed, "\n".join(f"{name}: {said}" for name, said in failed.items())


def made(recipe: Any, device: str, kind: str = "vit", **options: Any) -> tuple[nn.Module, Any]:
    batches = [images(12, kind), images(12, kind, seed=2)]
    return lowrank_vit.compress(tiny(kind).to(device), batches, recipe, 0.3, device=device, **options)


def kinds() -> None:
    """Windows with positions, MLPs alone, and norms folded, factors pivoted, embeddings at a rank."""
    for kind, recipe, changes in (
        ("swin", "best", {}),
        ("mixer", "best", {}),
        ("convnext", "best", {}),
        ("vit", "best", {"pivoted": True, "folded": True, "patches": "two_sided", "positions": "kronecker"}),
        ("vit", "exact", {"pivoted": True}),
    ):
        small = made(RECIPES[recipe].but(**changes), NAME, kind)[0]
        check_away(small)
        expected = made(RECIPES[recipe].but(**changes), "cpu", kind)[0]
        check_same(small, expected, kind)


def solvers() -> None:
    """Z of every kind, by solvers that are not Lightning's; budgets of every cost that is counted, and of two at once."""
    for solver in ("closed_form", "moments"):
        for kind in COMPENSATIONS.names():
            recipe = RECIPES["paper"].but(solver=solver, compensation=kind, steps=5)
            check_away(made(recipe, NAME)[0])
    for budget in ("macs=0.7", "bytes=0.7", "params=0.7,macs=0.6"):
        small, _ = lowrank_vit.compress(tiny().to(NAME), BATCHES, "exact", budget=budget, device=NAME)
        check_away(small)


def afterwards() -> None:
    """Save and load, at other sizes, too; quantise by every method, compare, evaluate, fewer tokens."""
    small, _ = made("best", NAME)
    labelled = [(images(6), torch.arange(6)), (images(6, seed=5), torch.arange(6))]
    dense = tiny().to(NAME)
    assert lowrank_vit.compare(dense, small, BATCHES)["n"] == 24
    assert lowrank_vit.evaluate(small, labelled)["n"] == 12
    assert divergences(Classification(), dense, [small], BATCHES)[0] > 0
    for method in QUANTIZERS.names():
        rounded = lowrank_vit.quantize(small, 4, BATCHES, quantizer=method)[0]
        check_away(rounded)
        with torch.no_grad():
            assert rounded(images(2).to(NAME)).device.type == NAME
    with tempfile.TemporaryDirectory() as folder:
        lowrank_vit.save(small, Path(folder) / "small", model_args=ARGUMENTS["vit"])
        loaded = lowrank_vit.load(Path(folder) / "small", NAME)
        check_away(loaded)
        check_same(loaded, small.cpu())
        analysis = lowrank_vit.analyse(tiny(), BATCHES, "exact", device=NAME)
        made_once, report = analysis.compress(0.2)
        assert not isinstance(next(made_once.parameters()), Away)  # it goes where the given model was
        lowrank_vit.save(made_once, Path(folder) / "nested", report, model_args=ARGUMENTS["vit"], nested=analysis)
        check_away(lowrank_vit.load(Path(folder) / "nested", NAME, reduction=0.4))
    merged = lowrank_vit.fewer_tokens(small.to(NAME), "tome", r=2)
    with torch.no_grad():
        assert merged(images(2).to(NAME)).device.type == NAME


def everything() -> None:
    """All of these."""
    recipes()
    kinds()
    solvers()
    afterwards()


def plant_identity() -> None:
    """Forget the device of an identity matrix."""
    whole = torch.eye
    torch.eye = lambda *sizes, device=None, **options: whole(*sizes, **options)  # type: ignore[assignment]


def plant_counts() -> None:
    """Leave what is counted on the CPU."""
    whole = torch.arange
    torch.arange = lambda *ends, device=None, **options: whole(*ends, **options)  # type: ignore[assignment]


def main(stage: str, planted: str = "", *names: str) -> None:
    """Run one stage on the device, perhaps with a planted mistake; print what failed."""
    set_up()
    code = 0
    try:
        with Made():
            if planted:
                globals()[f"plant_{planted}"]()
            globals()[stage](*names)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the thread of this device's backward pass cannot be joined


if __name__ == "__main__":
    main(*sys.argv[1:])
