"""The levels of table C: what is cut, against the explicit matrices, and what is reported of it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from experiments.jobs.job import Job
from experiments.measures import levels
from experiments.report.seeds import aggregate
from experiments.tables.table_comcat_levels import TABLE
from lowrank_vit import evaluate
from tests.experiments.support.untrained import data_for, dense, job_for, run

HEADS, WIDTH = 3, 8  # of digits_deit_small, whose stream has 24 numbers


def asked(measure: str, reduction: float) -> Job:
    return replace(job_for(measure), reduction=reduction)


def best(matrix: Tensor, rank: int) -> Tensor:
    u, s, vt = torch.linalg.svd(matrix.double())
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def test_the_shape_that_the_tests_assume() -> None:
    attention = dense().blocks[0].attn
    assert (attention.num_heads, attention.qkv.in_features) == (HEADS, HEADS * WIDTH)


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


def test_nothing_removed_is_the_dense_model() -> None:
    model, job = dense(), asked("head_level", 0.0)
    whole = evaluate(model, data_for(model, job), progress=False)["top1"]
    assert run("head_level", model, job) == {"top1_cut": pytest.approx(whole)}


@pytest.mark.parametrize("measure", ["head_level", "matrix_level", "mlp_level"])
def test_the_dense_model_stays_as_it_was(measure: str) -> None:
    model = dense()
    weights = {name: each.clone() for name, each in model.state_dict().items()}
    found = run(measure, model, asked(measure, 0.5))
    assert found.keys() == {"top1_cut"}
    assert all(torch.equal(each, weights[name]) for name, each in model.state_dict().items())


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


def test_what_was_measured_stands_as_the_accuracy() -> None:
    results = {
        seed: {"measured": {"top1_cut": top1}, "top1": {}, "params": {"dense": 9, "compressed": 9}, "seconds": {}}
        for seed, top1 in ((0, 40.0), (1, 42.0))
    }
    found = aggregate({seed: {**each, "job": asked("mlp_level", 0.2).as_json()} for seed, each in results.items()})
    assert (found["top1"], round(found["top1_std"], 3)) == (41.0, 1.414)


def test_the_paper_is_quoted_at_the_shares_that_are_run() -> None:
    printed = {row.params for row in TABLE.rows if row.id.startswith("deit_s/printed")}
    run_here = {f"-{round(100 * row.reduction)}% of its layers" for row in TABLE.runnable}
    assert printed <= run_here
