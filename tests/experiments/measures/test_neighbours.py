"""Nearest neighbours and the linear probe, by hand and on the digits."""

from __future__ import annotations

import pytest
import torch

from experiments.measures.neighbours import nearest, percent, probed


def test_neighbours_by_hand() -> None:
    """Cosines, whatever the lengths; two near votes outweigh one nearer; of single images the nearest decides."""
    gallery = torch.tensor([[1.0, 0.0], [0.8, 0.6], [8.0, 6.0], [0.0, 1.0]], dtype=torch.float64)
    labels, queries = torch.tensor([0, 1, 1, 2]), torch.tensor([[10.0, 3.0], [0.0, 5.0]], dtype=torch.float64)
    assert nearest(gallery, labels, queries, 1).tolist() == [0, 2]
    assert nearest(gallery, labels, queries, 3).tolist() == [1, 2]
    assert nearest(gallery, labels, queries, 10).tolist() == [1, 2]
    assert percent(torch.tensor([1, 2, 0]), torch.tensor([1, 0, 0])) == pytest.approx(200 / 3)


def test_the_probe_is_ridge_regression() -> None:
    """Against the normal equations with a column of ones, whose weight is not shrunk."""
    torch.manual_seed(0)
    x, labels, queries = torch.randn(30, 4).double(), torch.arange(30) % 3, torch.randn(9, 4).double()
    ones = torch.cat([x, torch.ones(30, 1)], 1)
    ridge = 0.5 * x.var(0, correction=0).mean() * 30
    penalty = torch.diag(torch.tensor([ridge, ridge, ridge, ridge, 0.0]))
    weight = torch.linalg.solve(ones.T @ ones + penalty, ones.T @ torch.eye(3).double()[labels])
    truth = (torch.cat([queries, torch.ones(9, 1)], 1) @ weight).argmax(1)
    assert torch.equal(probed(x, labels, queries, 0.5), truth)
