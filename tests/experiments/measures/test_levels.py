"""The levels of table C: what is cut, against the explicit matrices, and what is reported of it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from experiments.jobs.job import Job
from experiments.measures import levels
from tests.experiments.support.untrained import dense, job_for, run

HEADS, WIDTH = 3, 8  # of digits_deit_small, whose stream has 24 numbers


def asked(measure: str, reduction: float) -> Job:
    return replace(job_for(measure), reduction=reduction)


def best(matrix: Tensor, rank: int) -> Tensor:
    u, s, vt = torch.linalg.svd(matrix.double())
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def test_truncation_by_the_explicit_svd() -> None:
    parts = torch.randn(3, 8, 24, generator=torch.Generator().manual_seed(0))
    rank = 3  # of 0.6 * 8 * 24 / 32 = 3.6
    expected = torch.stack([best(part, rank) for part in parts])
    torch.testing.assert_close(levels.truncated(parts, 0.6).double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.linalg.matrix_rank(levels.truncated(parts[0], 0.01)) == 1


def by_hand(model: nn.Module, kept: float) -> nn.Module:
    """Every head's four matrices, one by one."""
    small, rank = copy.deepcopy(model), int(kept * 24 * WIDTH / (24 + WIDTH))
    for block in small.blocks:
        qkv, proj = block.attn.qkv.weight.data, block.attn.proj.weight.data
        for head in range(3 * HEADS):
            rows = slice(head * WIDTH, (head + 1) * WIDTH)
            qkv[rows] = best(qkv[rows], rank).float()
        for head in range(HEADS):
            columns = slice(head * WIDTH, (head + 1) * WIDTH)
            proj[:, columns] = best(proj[:, columns], rank).float()
    return small


def test_matrices_of_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[nn.Module] = []
    monkeypatch.setattr(levels, "_top1", lambda model, data: float(len(seen)) if seen.append(model) else 0.0)
    model = dense()
    run("matrix_level", model, asked("matrix_level", 0.4))
    expected = by_hand(model, 0.6)
    for name, each in expected.state_dict().items():
        torch.testing.assert_close(seen[0].state_dict()[name], each, rtol=1e-4, atol=1e-5)


def test_products_of_heads_keep_whole_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """int(0.6 * 8) = 4 of each head, and at nothing removed all 8; without biases where the recipe says so."""
    seen: list[nn.Module] = []
    monkeypatch.setattr(levels, "_top1", lambda model, data: float(len(seen)) if seen.append(model) else 0.0)
    for measure, reduction in (("head_level", 0.4), ("unbiased_head_level", 0.0)):
        run(measure, dense(), asked(measure, reduction))
    assert seen[0].blocks[0].attn.query_key.widths == seen[0].blocks[1].attn.value.widths == [4] * HEADS
    assert seen[1].blocks[0].attn.query_key.widths == [8] * HEADS
    assert not seen[1].blocks[0].attn.query.bias.any()
    assert seen[0].blocks[0].attn.query.bias.any()
