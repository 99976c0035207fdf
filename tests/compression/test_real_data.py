"""The claims about DeiT-Tiny, on its real weights and real images; the sample set is not ImageNet's validation set."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from lowrank_vit import analyse, compress
from lowrank_vit.architectures.linears import dense_weight, find_sites
from lowrank_vit.data import ImageData
from lowrank_vit.models import load_model
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.stages.evaluate.accuracy import evaluate

pytestmark = [pytest.mark.real_data, pytest.mark.slow]


@pytest.fixture(scope="module")
def model(real_data: Path) -> nn.Module:
    return load_model("deit_tiny_patch16_224", real_data / "weights" / "deit_tiny_patch16_224.safetensors")


@pytest.fixture(scope="module")
def data(real_data: Path, model: nn.Module) -> ImageData:
    spec = f"imagefolder:{real_data / 'imagenet-samples'}"
    return ImageData(spec, resolve_model_data_config(model), calibration_samples=256, held_out_samples=256)


@pytest.fixture(scope="module")
def images(data: ImageData) -> Tensor:
    return data.calibration_tensor()


def second_moments(model: nn.Module, images: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Input mean and second moment of some layers, in float64 throughout, by no code of the package."""
    found: dict[str, list[Tensor]] = {}
    chosen = [site for site in find_sites(model) if site.name.startswith(("blocks.0.", "blocks.11."))]

    def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str) -> None:
        rows = inputs[0].flatten(0, 1).double()
        sums = found.setdefault(name, [torch.zeros((), dtype=torch.float64)] * 3)
        found[name] = [sums[0] + len(rows), sums[1] + rows.sum(0), sums[2] + rows.T @ rows]

    hooks = [
        get_linear(model, site).register_forward_hook(lambda m, x, y, name=site.name: see(m, x, y, name))
        for site in chosen
    ]
    with torch.inference_mode():
        for batch in images.split(50):
            model(batch)
    for hook in hooks:
        hook.remove()
    for name, (count, total, second) in found.items():
        yield name, total / count, second / count


def test_exact_attains_the_eckart_young_bound(model: nn.Module, images: Tensor) -> None:
    """At every rank: the eigenvalues of the output's covariance that are left out, from separate float64 statistics."""
    some = images[:24]
    analysis = analyse(model, [some], "exact")
    layers = {unit.name: unit.site for unit in analysis.units}
    seen = 0
    for name, mean, second in second_moments(model, some):
        weight = dense_weight(model, layers[name])
        output = weight.T @ (second - torch.outer(mean, mean)) @ weight
        eigenvalues = torch.linalg.eigvalsh(output).flip(0).clamp_min(0)[: layers[name].full_rank]
        bound = torch.cat([eigenvalues.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
        bound = bound / (weight.T @ second @ weight).trace()
        loss = analysis.parts[name][name].loss
        useful = slice(0, layers[name].full_rank * 3 // 4)  # up to break-even; beyond it the bound is rounding
        torch.testing.assert_close(loss[useful], bound[useful], rtol=1e-4, atol=1e-9)
        u, v = analysis.parts[name][name].cut(layers[name].full_rank // 3)
        error = weight - u @ v.T
        covariance = second - torch.outer(mean, mean)
        achieved = (error * (covariance @ error)).sum() / (weight.T @ second @ weight).trace()
        assert achieved <= bound[layers[name].full_rank // 3] * (1 + 1e-6)
        seen += 1
    assert seen == 8


@pytest.mark.timeout(1800)  # minutes on an idle machine, many of them on a busy one
def test_best_keeps_most_of_its_accuracy(model: nn.Module, data: ImageData, images: Tensor) -> None:
    """Without fine-tuning, on the sample set (dense 83.7): 80.1 at -25 % is published, of more images."""
    small, report = compress(model, images.split(50), "best", 0.25)
    assert report["params"]["compressed"] <= 0.75 * report["params"]["dense"]
    assert report["params"]["reduction"] == pytest.approx(0.25, abs=1e-4)
    result = evaluate(small, data, progress=False)
    assert result["n"] == 1000
    assert 77 <= result["top1"] < 83.7
