"""The loss with a teacher: against its parts by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.stages.training.finetune import FullFineTune
from lowrank_vit.stages.training.teacher import align_factor, apart
from tests.support.models import images, tiny

LABELS = torch.arange(6) % 10


def block_outputs(model: nn.Module, data: Tensor) -> list[Tensor]:
    """Block by block."""
    x, seen = model._pos_embed(model.patch_embed(data)), []
    for block in model.blocks:
        x = block(x)
        seen.append(x)
    return seen


def test_the_weight_of_aligned_blocks() -> None:
    """A quarter of a cosine, from the weight to no less than 0.01, and nothing where nothing is asked for."""
    assert align_factor(0.5, 0, 10) == 0.5
    assert align_factor(0.5, 5, 10) == pytest.approx(0.5 * math.sqrt(0.5))
    assert align_factor(0.5, 10, 10) == 0.01
    assert align_factor(0.001, 10, 10) == 0.001


def test_first_and_last_blocks_are_compared_once() -> None:
    dense = [torch.zeros(2, 3)] * 6
    small = [torch.full((2, 3), float(place)) for place in range(6)]
    assert float(apart(small, dense)) == 0 + 1 + 16 + 25
    assert float(apart(small[:2], dense[:2])) == 1
    assert float(apart(small[:3], dense[:3])) == 0 + 1 + 4
    assert float(apart(small[4:5], dense[:1])) == 16


def test_hard_answers_and_aligned_blocks() -> None:
    model, teacher, data = tiny(seed=1), tiny(), images(6)
    hard = FullFineTune(model, teacher=teacher, hard_teacher=True, align_weight=0.5, label_smoothing=0.0)
    logits, answers = model(data), teacher(data).argmax(1)
    expected = (F.cross_entropy(logits, LABELS) + F.cross_entropy(logits, answers)) / 2
    pairs = zip(block_outputs(model, data), block_outputs(teacher, data), strict=True)
    expected = expected + 0.5 * sum((small - dense).square().mean() for small, dense in pairs)
    torch.testing.assert_close(hard.loss(data, LABELS), expected)
    hard.loss(data, LABELS).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
