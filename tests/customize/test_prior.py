"""Prior preservation: what is drawn, and what it adds to the loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lowrank_vit.customize.sample import Prior, draw_prior, sample
from lowrank_vit.customize.train import Training, train
from lowrank_vit.runtime.errors import InputError
from tests.customize.test_train_and_sample import knowing
from tests.support.diffusion import attached, outputs, small

IMAGES = torch.linspace(-1, 1, 128).view(2, 1, 8, 8)


def test_the_base_draws_the_prompts_in_turns() -> None:
    model = small(torch.float32)
    prior = draw_prior(model, ["normal 3", "inverted 5"], 3, seed=2)
    assert prior.prompts == ("normal 3", "inverted 5", "normal 3")
    assert torch.equal(prior.images, sample(model, prior.prompts, seed=2))


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


def test_without_a_prior_training_is_what_it_was() -> None:
    found = []
    for prior in (None, Prior(IMAGES, ("normal 3", "normal 5"), 1e-30)):
        model = small(torch.float32)
        train(attached(model, "comcat"), IMAGES, "normal V* digit", Training(1, 2, 1e-3), prior=prior)
        found.append(outputs(model))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("prompts", "count", "weight", "said"),
    [
        ([], 4, 1.0, "4 images for 0 prompts"),
        (["normal 3", "normal 5"], 1, 1.0, "1 images for 2 prompts"),
        (["normal 3"], 1, 0.0, "weight is 0"),
        (["normal 3"], 1, float("nan"), "weight is nan"),
        (["normal cat"], 1, 1.0, "does not know 'cat'"),
    ],
)
def test_bad_priors_are_refused(prompts: list[str], count: int, weight: float, said: str) -> None:
    with pytest.raises(InputError, match=said):
        draw_prior(small(torch.float32), prompts, count, weight=weight)
