"""Streams on the disk: the refit is the one with all images in memory, and nothing stays on the disk."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import family_of, first_inputs
from lowrank_vit.stages.correct.output_refit import OutputRefit
from lowrank_vit.stages.correct.regression import Regression, cross_validated
from tests.support.models import model_and_images, modules_of


def halved(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy whose output layers give half of what they gave: much to mend; and weights that differ by position."""
    small, layers = copy.deepcopy(model), [site.linears[-1].name for site in modules_of(model)]
    for name in layers:
        small.get_submodule(name).weight.data *= 0.5
    return small, {name: torch.arange(1.0, 18, dtype=torch.float64) for name in layers}


@torch.no_grad()
def refit_in_memory(model: nn.Module, small: nn.Module, sensitivities: dict[str, Tensor], data: Tensor) -> dict:
    """The refit of all images in one go, in float64: no files, no batches, and each smaller branch runs twice."""
    family, method, ridges = family_of(model), OutputRefit(), {}
    steps = family.steps(model)
    (x,) = first_inputs(model, next(iter(steps.values())), [data])
    y = x
    for name, step in steps.items():
        for old, new in zip(family.branches(step), family.branches(small.get_submodule(name)), strict=True):
            output = f"{name}.{old.output_name}"
            added, h = new.with_inputs(y)
            x = x + old.add(x)
            error, share = x - y - added, sensitivities[output] / sensitivities[output].sum()
            rows = (1 - method.sensitivity + method.sensitivity * len(share) * share).expand(len(x), -1)
            folds = [Regression.empty(h.shape[-1], x.shape[-1]) for _ in range(method.folds)]
            for index, fold in enumerate(folds):
                fold.add(*(each[index :: method.folds].flatten(0, 1) for each in (h, error, rows)))
            change, shift, ridges[output] = cross_validated(folds, method.ridges)
            new.output_layer.weight += change.T
            new.output_layer.bias += shift
            y = y + new.add(y)
    return ridges


@pytest.mark.parametrize("sizes", [[6, 6, 6, 6], [5, 11, 8], [24]])
def test_the_refit_is_the_one_in_memory(sizes: list[int]) -> None:
    model, data = model_and_images("vit")
    model, data = model.double(), data.double()
    (one, sensitivities), (other, _) = halved(model), halved(model)
    expected = refit_in_memory(model, one, sensitivities, data)
    ridges = OutputRefit()(model, other, sensitivities, data.split(sizes))
    assert ridges == expected
    assert any(ridge is not None for ridge in ridges.values())
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(
            other.state_dict()[name], weight, rtol=1e-4, atol=1e-4
        )  # sums are of float32 products
