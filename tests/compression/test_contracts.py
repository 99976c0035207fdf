"""What users hand in: any precision, batches of any shape, outputs of other libraries; it works, or one line says why not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import compress, load, save
from lowrank_vit.linalg.metric import cholesky_root
from lowrank_vit.modules.counting import model_hash
from tests.support.cases import few
from tests.support.models import ARGUMENTS, images, tiny


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in model.state_dict().items()}


def same(model: nn.Module, other: nn.Module) -> bool:
    ours, theirs = state(model), state(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("dtype", few([torch.bfloat16, torch.float16], 1))
def test_a_model_in_half_precision_is_computed_in_float32(dtype: torch.dtype, tmp_path: Any) -> None:
    """It is that of the widened model, rounded."""
    model, data = tiny().to(dtype), images(8).to(dtype)
    small, report = compress(model, data.split(4), "best", 0.3, held_out=[data[:2]])
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    expected, told = compress(tiny().to(dtype).float(), data.float().split(4), "best", 0.3, held_out=[data[:2].float()])
    assert same(small, expected.to(dtype))
    assert report["layers"] == told["layers"]
    assert model.head.weight.dtype == dtype
    save(small, tmp_path / "small", model_args=ARGUMENTS["vit"])
    assert same(load(tmp_path / "small"), small)
    assert model_hash(model) != model_hash(small)


def test_inputs_that_hardly_vary_are_decomposed() -> None:
    """The covariance of a constant is what the sum of its squares was rounded by, here 2e-4 of it, of either sign."""
    generator = torch.Generator().manual_seed(0)
    noise = 2e-4 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    covariance = noise + noise.T
    assert torch.linalg.eigvalsh(covariance)[0] < -1e-4
    root, ridge = cholesky_root(covariance, scale=torch.ones((), dtype=torch.float64))
    assert 1e-4 < ridge <= 1e-2
    assert torch.allclose(root @ root.T, covariance + ridge * torch.eye(4, dtype=torch.float64))
