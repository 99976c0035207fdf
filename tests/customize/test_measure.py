"""Metrics by hand-worked cases and identities; what the judge sees."""

import numpy as np
import pytest
import scipy.linalg
import torch

from lowrank_vit.customize.digits import Judge, accuracy, digit_images, frechet_distance
from lowrank_vit.models import load_model


def features(seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(40, 6, generator=generator).double() @ torch.randn(6, 6, generator=generator).double()


def test_frechet_distance_by_the_matrix_square_root() -> None:
    first, second = features(1), features(2, 2.0)
    a, b = (np.cov(each.numpy().T) for each in (first, second))
    way = (first.mean(0) - second.mean(0)).square().sum().item()
    truth = way + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert frechet_distance(first, second) == pytest.approx(truth)


def test_the_judge_knows_the_real_digits() -> None:
    classifier = load_model("digits_deit_small", None)
    images, digits = digit_images(range(10), "validation")
    answers, pooled = Judge(classifier)(images)
    assert accuracy(answers, digits) > 95
    assert pooled.shape == (500, 24)
    assert accuracy(Judge(classifier)(-images)[0], digits) < 50
