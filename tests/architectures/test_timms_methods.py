"""What timm calls on a model, and on the parts that it made, goes on a compressed model as on the dense one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import compress
from tests.support.cases import few
from tests.support.kinds import KINDS
from tests.support.models import images, tiny

LARGER = {"vit": 12, "swin": 32, "beit": 64, "beit, shared": 64, "eva": 64, "swin v2": 64}


@cache
def made(kind: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A model, its smaller form, and images."""
    known = kind in ("vit", "swin")
    model, data = (tiny(kind), images(8, kind)) if known else (KINDS[kind].make(), KINDS[kind].images(8))
    return model, compress(model, [data], "best", 0.03, device="cpu")[0], data


def resized(model: Any, kind: str, data: Tensor) -> Tensor:
    model.set_input_size(img_size=LARGER[kind])
    larger = torch.nn.functional.interpolate(data, size=(LARGER[kind],) * 2)
    logits: Tensor = model(larger)
    return logits


def checkpointed(model: Any, kind: str, data: Tensor) -> Tensor:
    model.set_grad_checkpointing(True)
    logits: Tensor = model(data.requires_grad_())
    logits.sum().backward()
    return logits


def fewer_blocks(model: Any, kind: str, data: Tensor) -> Tensor:
    model.prune_intermediate_layers([0])
    features: Tensor = model.forward_features(data)
    return features


def other_classes(model: Any, kind: str, data: Tensor) -> Tensor:
    model.reset_classifier(0)
    features: Tensor = model(data)
    return features


def between(model: Any, kind: str, data: Tensor) -> Tensor:
    last: Tensor = model.forward_intermediates(data, intermediates_only=True)[-1]
    return last


def described(model: Any, kind: str, data: Tensor) -> Tensor:
    model.group_matcher()
    model.no_weight_decay()
    logits: Tensor = model(data)
    return logits


@pytest.mark.parametrize("call", [resized, checkpointed, fewer_blocks, other_classes, between, described])
@pytest.mark.parametrize("kind", few(LARGER))
def test_the_smaller_model_answers_as_the_dense_one(kind: str, call: Callable[[Any, str, Tensor], Tensor]) -> None:
    dense, small, data = copy.deepcopy(made(kind))
    with torch.set_grad_enabled(call is checkpointed):
        expected, given = call(dense, kind, data.clone()), call(small, kind, data.clone())
    assert given.shape == expected.shape
    assert float((given - expected).norm() / expected.norm()) < 0.25
