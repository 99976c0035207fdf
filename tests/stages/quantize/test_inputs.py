"""Moments of the inputs of layers to be quantised: behind what was replaced, and where they hardly vary."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import compress
from lowrank_vit.architectures.linears import find_sites
from lowrank_vit.compression.quantize import quantize
from lowrank_vit.stages.calibrate.stream import calibrate
from lowrank_vit.stages.quantize.gptq import ErrorFeedback
from lowrank_vit.stages.quantize.inputs import InputMoments, input_moments
from lowrank_vit.stages.quantize.nearest import RoundToNearest
from lowrank_vit.stages.quantize.weights import quantize_linear
from tests.support.cases import in_turn
from tests.support.models import images, inputs_of, tiny

NEEDS = {"input_second"}


def collected(model: nn.Module, kind: str, change: bool = False) -> dict[str, InputMoments]:
    """Collect all moments; ``change``: double the first block's fc1 as soon as its moments are there."""
    found: dict[str, InputMoments] = {}
    names = [site.name for site in find_sites(model)]
    for group in input_moments(model, names, [images(6, kind)]):
        found |= group
        if change and any(name.endswith("blocks.0.mlp.fc1") for name in group):
            name = next(name for name in group if name.endswith("blocks.0.mlp.fc1"))
            model.get_submodule(name).weight.data *= 2
            change = False
    assert list(found) == names
    return found


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_they_are_those_of_one_pass_while_nothing_changes(kind: str) -> None:
    model = tiny(kind)
    moments = calibrate(model, find_sites(model), NEEDS, [images(6, kind)])
    for name, inputs in collected(model, kind).items():
        torch.testing.assert_close(inputs.second, moments[name].mean("input_second"), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(inputs.mean, moments[name].mean("input_sum"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_they_come_from_blocks_as_they_have_become(kind: str) -> None:
    before, changed = collected(tiny(kind), kind), tiny(kind)
    during = collected(changed, kind, change=True)
    after = calibrate(changed, find_sites(changed), NEEDS, [images(6, kind)])
    names = list(before)
    seen = next(index for index, name in enumerate(names) if name.endswith("blocks.0.mlp.fc2"))  # of the same block
    for name in names[: seen + 1]:
        torch.testing.assert_close(during[name].second, before[name].second)
    for name in names[seen + 1 :]:
        torch.testing.assert_close(during[name].second, after[name].mean("input_second"), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(during[names[-1]].second, before[names[-1]].second, rtol=1e-2)


def divergence(model: nn.Module, other: nn.Module) -> float:
    with torch.no_grad():
        return float((model(images(12)) - other(images(12))).square().mean())


@pytest.mark.parametrize("recipe", [None, "exact", "best"])
def test_fed_back_errors_change_the_outputs_less(recipe: str | None) -> None:
    model = tiny("vit")
    if recipe is not None:
        model, _ = compress(model, [images(12)], recipe, 0.3)
    nearest, _ = quantize(model, 3)
    fed_back, addition = quantize(model, 3, [images(12)], quantizer="gptq")
    assert divergence(model, fed_back) < 0.7 * divergence(model, nearest)
    assert addition["quantization"]["method"] == "gptq"
    assert addition["quantization"]["hyperparameters"]["damping"] == 0.01


def test_the_bias_takes_up_the_mean_of_what_is_lost() -> None:
    model = tiny("vit")
    quantized, _ = quantize(model, 2, [images(12)], quantizer=ErrorFeedback(shrinkages=(1.0,)))
    dense, rounded = model.get_submodule("blocks.0.attn.qkv"), quantized.get_submodule("blocks.0.attn.qkv")
    inputs = next(input_moments(model, ["blocks.0.attn.qkv"], [images(12)]))["blocks.0.attn.qkv"].mean.float()
    torch.testing.assert_close(rounded(inputs), dense(inputs), atol=2e-3, rtol=0)  # biases are stored as float16


def test_the_covariance_is_what_the_weight_keeps() -> None:
    rows = torch.randn(50, 3, dtype=torch.float64) + torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    moments = InputMoments(rows.mean(0), rows.T @ rows / len(rows))
    torch.testing.assert_close(moments.centred, rows.T.cov(correction=0))


def small_hidden_units() -> tuple[nn.Module, Tensor]:
    model = tiny()
    for name, parameter in model.named_parameters():
        if "fc1.weight" in name:
            parameter.data *= 1e-3
    return model, images(16)


def huge_inputs() -> tuple[nn.Module, Tensor]:
    model = tiny()
    for name, parameter in model.named_parameters():
        if "norm" in name and "bias" in name:
            parameter.data += 3000
    return model, images(16)


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "small hidden units": small_hidden_units,
    "blank images": lambda: (tiny(), torch.zeros_like(images(16))),
    "one image": lambda: (tiny(), images(1).repeat(8, 1, 1, 1)),
    "huge inputs": huge_inputs,
}


def true_moments(model: nn.Module, name: str, data: Tensor) -> InputMoments:
    """The layer's, without rounding to speak of."""
    x = inputs_of(model, [name], data)[name].double().flatten(0, -2)
    away = x - x.mean(0)
    return InputMoments(x.mean(0), x.T @ x / len(x), x.mean(0), away.T @ away / len(x))


@pytest.mark.parametrize(("case", "bits"), in_turn(CASES, [2, 4, 8]))
def test_gptq_is_finite_and_no_worse_than_nearest(case: str, bits: int) -> None:
    model, data = CASES[case]()
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "blocks" in name]
    for group in input_moments(model, names, list(data.split(8))):
        for name, inputs in group.items():
            layer, true = model.get_submodule(name), true_moments(model, name, data)
            assert isinstance(layer, nn.Linear)
            error = {}
            for method in (ErrorFeedback(), RoundToNearest()):
                small = quantize_linear(layer, bits, name, method, inputs)
                assert small.scale.isfinite().all()
                lost = layer.weight.double() - small.weight.double()
                error[type(method)] = float(((lost @ true.centred) * lost).sum())
            size = float(((layer.weight.double() @ true.second) * layer.weight.double()).sum())
            assert error[ErrorFeedback] <= 1.001 * error[RoundToNearest] + 1e-12 * size


def test_covariances_are_those_of_float64() -> None:
    """Where products of float32 would miss them."""
    model, data = small_hidden_units()
    for name, found in next(input_moments(model, ["blocks.0.mlp.fc2"], [data])).items():
        true = true_moments(model, name, data).centred
        torch.testing.assert_close(found.centred, true, rtol=1e-6, atol=1e-6 * float(true.diagonal().max()))
