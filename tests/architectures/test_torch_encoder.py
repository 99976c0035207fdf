"""Vision transformers around torch's own attention: the same promises as for timm's."""

import copy
import logging
from functools import cache

import pytest
import torch
from timm.models.swin_transformer_v2 import WindowAttention as CosineAttention
from torch import Tensor, nn

from lowrank_vit import compress
from lowrank_vit.architectures.base import FAMILIES, family_of
from lowrank_vit.architectures.canonical import canonical
from lowrank_vit.modules.counting import parameter_count
from tests.support.cases import few
from tests.support.models import distance
from tests.support.refits import check_walk
from tests.support.torch_kinds import TORCH

each = pytest.mark.parametrize("kind", few(sorted(TORCH, key=lambda kind: "swin" in kind)))


@cache
def made(kind: str) -> tuple[nn.Module, Tensor]:
    """A model, which nobody changes, and its images."""
    return TORCH[kind].make(), TORCH[kind].images(8)


@each
class TestEveryKind:
    def test_the_exchanged_blocks_compute_the_same(self, kind: str) -> None:
        model, data = made(kind)
        exchanged = canonical(copy.deepcopy(model))
        unused = sum(len(each.k_bias) for each in exchanged.modules() if isinstance(each, CosineAttention))
        assert parameter_count(exchanged) == parameter_count(model) - unused
        assert distance(exchanged, model, data) < 1e-10

    def test_steps_are_the_whole_way(self, kind: str) -> None:
        model, data = canonical(copy.deepcopy(made(kind)[0])), made(kind)[1]
        assert type(family_of(model)) is FAMILIES.get(TORCH[kind].family)
        if TORCH[kind].walks:
            with torch.no_grad():
                check_walk(model, data, model(data))

    def test_best_takes_it_whole(self, kind: str, caplog: pytest.LogCaptureFixture) -> None:
        model, data = made(kind)
        with caplog.at_level(logging.WARNING):
            small, report = compress(model, [data[:4], data[4:]], "best", 0.25, device="cpu")
        assert parameter_count(small) <= 0.75 * parameter_count(model)
        details = [layer["details"] for layer in report["layers"]]
        assert any("hidden" in each for each in details)
        assert any("value" in each for each in details)
        assert any("query_key" in each for each in details) == TORCH[kind].logits
        assert ("refit" in report) == TORCH[kind].walks
        assert ("fallback" in report) != TORCH[kind].walks
        assert distance(small, model, data) < 0.6
