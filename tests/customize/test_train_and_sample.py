"""Training and sampling by U-Nets whose answers are known; metrics by hand, the judge, and the prior of old images."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from lowrank_vit.customize.digits import Judge, accuracy, digit_images, frechet_distance
from lowrank_vit.customize.sample import Prior, sample
from lowrank_vit.customize.text_to_image import TextToImage
from lowrank_vit.customize.train import Training, noise_loss, train
from lowrank_vit.models import load_model
from tests.support.cases import in_turn
from tests.support.diffusion import attached, outputs, small

SHAPE = (1, 8, 8)


class Knowing(nn.Module):
    """A U-Net that knows the image behind the noise: one for the empty prompt, one for any other."""

    def __init__(self, empty: Tensor, given: Tensor, kind: str = "epsilon") -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))
        self.config = {"sample_size": 8, "in_channels": 1}
        self.shares = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").alphas_cumprod
        self.empty, self.given, self.kind = empty, given, kind
        self.seen: list[tuple[int, Tensor]] = []

    def forward(self, noised: Tensor, times: Tensor, context: Tensor) -> SimpleNamespace:
        share = self.shares[times.expand(len(noised))].view(-1, 1, 1, 1)
        self.seen.append((int(times.flatten()[0]), noised))
        image = torch.where(context.sum((1, 2)).view(-1, 1, 1, 1) == 0, self.empty, self.given)
        noise = (noised - share.sqrt() * image) / (1 - share).sqrt()
        return SimpleNamespace(
            sample=noise if self.kind == "epsilon" else share.sqrt() * noise - (1 - share).sqrt() * image
        )


def knowing(empty: Tensor, given: Tensor, kind: str = "epsilon") -> TextToImage:
    """A model whose prompts are zeros or ones."""
    text: Any = SimpleNamespace(
        encoder=nn.Linear(1, 1), tokens=lambda prompts, word: torch.tensor([[len(p) > 0] for p in prompts])
    )
    text.encode = lambda tokens: tokens.float().unsqueeze(-1)
    schedule = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": kind}
    return TextToImage(Knowing(empty, given, kind), text, schedule)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_who_knows_the_images_has_no_loss(kind: str) -> None:
    image = torch.full(SHAPE, 0.3)
    model = knowing(image, image, kind)
    noising = DDPMScheduler.from_config(dict(model.schedule))
    images, given = image.expand(6, -1, -1, -1), torch.ones(6, 1, 1)
    right, wrong = (noise_loss(model, noising, x, given, torch.Generator().manual_seed(0)) for x in (images, -images))
    assert right < 1e-6
    assert wrong > 1e-2


@pytest.mark.parametrize(("kind", "guidance"), in_turn(["epsilon", "v_prediction"], [0.0, 1.0, 2.0]))
def test_guidance_goes_from_the_empty_prompts_image_beyond_the_given_ones(guidance: float, kind: str) -> None:
    empty, given = torch.full(SHAPE, 0.1), torch.full(SHAPE, -0.2)
    images = sample(knowing(empty, given, kind), ["a word"] * 3, guidance=guidance, steps=5)
    assert torch.allclose(images, (empty + guidance * (given - empty)).expand(3, -1, -1, -1), atol=1e-4)


@pytest.mark.slow
def test_training_learns_an_image_and_the_seed_decides() -> None:
    images = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    runs = []
    for seed in (0, 0, 1):
        model = small(torch.float32)
        customization = attached(model, "dreambooth")
        losses = train(customization, images, "normal V* digit", Training(25, 4, 1e-2), seed=seed).losses
        runs.append((losses, outputs(model)))
    assert sum(runs[0][0][-5:]) < 0.5 * sum(runs[0][0][:5])
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][1], runs[2][1])


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
