"""Inputs that hardly vary, or not at all: finite codes, and no layer that errs more than by rounding to nearest."""

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit.stages.quantize.gptq import ErrorFeedback
from lowrank_vit.stages.quantize.inputs import InputMoments, input_moments
from lowrank_vit.stages.quantize.nearest import RoundToNearest
from lowrank_vit.stages.quantize.weights import quantize_linear
from tests.support.cases import in_turn
from tests.support.models import images, tiny


def small_hidden_units() -> tuple[nn.Module, Tensor]:
    model = tiny()
    for name, parameter in model.named_parameters():
        if "fc1.weight" in name:
            parameter.data *= 1e-3
    return model, images(16)


def blank_images() -> tuple[nn.Module, Tensor]:
    return tiny(), torch.zeros_like(images(16))


def one_image() -> tuple[nn.Module, Tensor]:
    return tiny(), images(1).repeat(8, 1, 1, 1)


def huge_inputs() -> tuple[nn.Module, Tensor]:
    model = tiny()
    for name, parameter in model.named_parameters():
        if "norm" in name and "bias" in name:
            parameter.data += 3000
    return model, images(16)


CASES = {each.__name__: each for each in (small_hidden_units, blank_images, one_image, huge_inputs)}


def true_moments(model: nn.Module, name: str, data: Tensor) -> InputMoments:
    """The layer's, without rounding to speak of."""
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        model(data)
    hook.remove()
    x = seen[0].double().flatten(0, -2)
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
