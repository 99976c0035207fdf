"""Vision transformers that people wrote themselves: taken for what they compute, never for what they look like."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import InputError, compress, load, quantize, save
from lowrank_vit.architectures.base import UnknownWholeError, family_of
from lowrank_vit.architectures.canonical import canonical
from lowrank_vit.architectures.encoder_parts import EncoderBlock
from lowrank_vit.architectures.imitated import BranchStep
from lowrank_vit.modules.counting import parameter_count
from tests.support.cases import few
from tests.support.hand_written import PARTLY, WHOLE, Listed
from tests.support.walks import check_walk

X = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def made(kind: str) -> nn.Module:
    """A model in which every part matters."""
    torch.manual_seed(0)
    model = {**WHOLE, **PARTLY}[kind]().eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def distance(small: nn.Module, dense: nn.Module, data: Tensor = X) -> float:
    return float((small(data) - dense(data)).norm() / dense(data).norm())


@pytest.mark.parametrize("kind", [*WHOLE, *PARTLY])
def test_what_is_exchanged_computes_the_same(kind: str) -> None:
    model = made(kind)
    exchanged = canonical(copy.deepcopy(model))
    assert distance(exchanged, model) < 1e-5
    assert parameter_count(exchanged) == parameter_count(model)


@pytest.mark.parametrize("kind", few(WHOLE))
class TestWhole:
    @torch.no_grad()
    def test_steps_are_the_whole_way(self, kind: str) -> None:
        model, data = canonical(made(kind).double()), X.double()
        assert all(isinstance(step, EncoderBlock | BranchStep) for step in family_of(model).steps(model).values())
        check_walk(model, data, model(data))

    def test_best_takes_it_whole(self, kind: str, tmp_path: Path) -> None:
        model = made(kind)
        small, report = compress(model, [X], "best", 0.25, device="cpu")
        details = [layer["details"] for layer in report["layers"]]
        assert "fallback" not in report
        assert report["refit"]
        assert any("hidden" in each for each in details)
        assert any("query_key" in each and "value" in each for each in details)
        assert distance(small, model) < 0.4
        save(small, tmp_path / "it")
        assert distance(load(tmp_path / "it", model=model), small) == 0
        assert distance(quantize(model, 8, [X], quantizer="gptq")[0], model) < 0.05


@pytest.mark.parametrize("kind", PARTLY)
def test_what_is_known_of_the_rest_shrinks(kind: str) -> None:
    model = made(kind)
    small, report = compress(model, [X], "best", 0.2, device="cpu")
    assert "refit" in report["fallback"]["left_out"]
    assert any("hidden" in layer["details"] for layer in report["layers"])
    assert parameter_count(small) < 0.85 * parameter_count(model)
    assert distance(small, model) < 0.6
    with pytest.raises(UnknownWholeError, match="cannot be refitted"):
        family_of(canonical(model)).steps(model)


@pytest.mark.parametrize("asked", [False, True])
def test_a_block_that_is_asked_for_more(asked: bool) -> None:
    class Asked(Listed):
        def forward(self, x: Tensor) -> Tensor:
            *first, last = self.layers
            for layer in first:
                x = layer(x, return_attention=False)
            return last(x, return_attention=asked)

    model = made("torch's attention")
    model.body.__class__ = Asked
    if asked:
        with pytest.raises(InputError, match=r"more than the stream \(return_attention\), which"):
            compress(model, [X], "loss_aware", 0.2, device="cpu")
    else:
        _, report = compress(model, [X], "best", 0.2, device="cpu")
        assert report["refit"]
