"""Training and sampling by their definitions: U-Nets whose answers are known."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from lowrank_vit.customize.sample import sample
from lowrank_vit.customize.text_to_image import TextToImage
from lowrank_vit.customize.train import Training, noise_loss, train
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
    loss = noise_loss(
        model, noising, image.expand(6, -1, -1, -1), torch.ones(6, 1, 1), torch.Generator().manual_seed(0)
    )
    assert loss < 1e-6
    wrong = noise_loss(
        model, noising, -image.expand(6, -1, -1, -1), torch.ones(6, 1, 1), torch.Generator().manual_seed(0)
    )
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
