"""Metrics by hand-worked cases and identities, what the judge sees, and the prior of old images."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from lowrank_vit.customize.digits import Judge, accuracy, digit_images, frechet_distance
from lowrank_vit.customize.sample import Prior
from lowrank_vit.customize.train import Training, train
from lowrank_vit.models import load_model
from tests.customize.test_train_and_sample import knowing
from tests.support.diffusion import attached, small


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


IMAGES = torch.linspace(-1, 1, 128).view(2, 1, 8, 8)


def first_loss(prior: Prior | None) -> float:
    """The loss of the first step, at which nothing is trained yet."""
    customization = attached(small(torch.float32), "comcat")
    return train(customization, IMAGES, "normal V* digit", Training(1, 2, 1e-3), prior=prior).losses[0]


def test_its_loss_is_added_by_its_weight() -> None:
    drawn, prompts = -IMAGES[:1], ("normal 3",)
    alone, once, thrice = (first_loss(prior) for prior in (None, Prior(drawn, prompts), Prior(drawn, prompts, 3.0)))
    assert once > alone
    assert thrice - alone == pytest.approx(3 * (once - alone), rel=1e-4)


def test_each_image_is_learnt_by_its_own_prompt() -> None:
    """A U-Net that knows one image for the empty prompt, and another one for any other, has no loss to learn from."""
    empty, given = torch.full((1, 8, 8), 0.1), torch.full((1, 8, 8), -0.2)
    model = knowing(empty, given)
    bias = torch.nn.Parameter(torch.zeros(()))
    model.unet.register_forward_hook(lambda module, inputs, made: SimpleNamespace(sample=made.sample + 0 * bias))
    method = SimpleNamespace(trains_word=False, learning_rate=1e-3)
    customization: Any = SimpleNamespace(model=model, method=method, prompt=model.prompt, trained=[bias])
    images, drawn = given.expand(2, -1, -1, -1), torch.stack([empty, given])
    for prompts, right in ((("", "a word"), True), (("a word", ""), False)):
        told = train(customization, images, "a word", Training(3, 8), prior=Prior(drawn, prompts))
        assert all((loss < 1e-6) == right for loss in told.losses)
