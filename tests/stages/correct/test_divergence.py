"""The divergence that everything is measured by, against its definition."""

import math

import pytest
import torch

from lowrank_vit.objectives.classification import Classification


def test_the_divergence_is_that_of_the_small_model_from_the_dense_one() -> None:
    """KL(p || q) of p = (1/2, 1/2), q = (1/4, 3/4): 1/2 log 2 + 1/2 log 2/3; the other way it would be another number."""
    dense, small = (torch.tensor([shares]).double().log() for shares in ([0.5, 0.5], [0.25, 0.75]))
    truth = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert float(Classification().divergence(dense, small)) == pytest.approx(truth)
    assert float(Classification().divergence(small, dense)) != pytest.approx(truth, rel=1e-2)
