"""Prior preservation: what is drawn, and what it adds to the loss."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lowrank_vit.customize.sample import Prior
from lowrank_vit.customize.train import Training, train
from tests.customize.test_train_and_sample import knowing
from tests.support.diffusion import attached, small

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
