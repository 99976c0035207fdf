"""One training loop for all deltas: predict the noise that was added to a few images of the new thing."""

import math
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lowrank_vit.customize.customization import Customization
from lowrank_vit.customize.sample import Prior
from lowrank_vit.customize.text_to_image import TextToImage
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.progress import say, track

TIMED = 2  # the step that an estimate is made from: the first ones take longer


@dataclass(frozen=True)
class Training:
    """Hold the training settings: AdamW with a learning rate that falls linearly to zero; the defaults are COMCAT's.

    ``learning_rate`` None is the method's own.
    """

    steps: int = 500
    batch_size: int = 1
    learning_rate: float | None = None
    weight_decay: float = 1e-2
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: at least one is needed")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InputError(f"learning rate {self.learning_rate:g}: give one above zero")


@dataclass
class Trained:
    """Hold what a training recorded: the loss of every step, and the median of the seconds per step."""

    losses: list[float] = field(default_factory=list)
    seconds_a_step: float = 0.0


def train(
    customization: Customization,
    images: Tensor,
    prompt: str,
    training: Training,
    *,
    prior: Prior | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Trained:
    """Train a delta in place on images (N, C, H, W) in -1..1, all with one prompt.

    Minimises ``E ||target - UNet(noised, t, prompt)||^2`` over images, noise and t, where the target is the noise, or the
    velocity for a model that predicts that. With a ``prior``, its weight times the same of as many images that the base
    drew is added (prior preservation). The seed draws the same on every device.
    Raises ``InputError`` where the loss is no number any more.
    """
    from diffusers import DDPMScheduler

    model, generator = customization.model, torch.Generator().manual_seed(seed)
    optimizer, schedule = _optimizer(customization, training)
    told, times = Trained(), []
    images, noising = images.to(model.device), DDPMScheduler.from_config(dict(model.schedule))
    fixed = None if customization.method.trains_word else customization.prompt([prompt]).detach()
    for step in track(range(training.steps), "customize", shown=progress):
        start = time.perf_counter()
        batch = images[torch.randint(len(images), (training.batch_size,), generator=generator)]
        context = customization.prompt([prompt]) if fixed is None else fixed
        loss = noise_loss(model, noising, batch, context.expand(len(batch), -1, -1), generator)
        if prior is not None:
            loss = loss + _prior_loss(model, noising, prior, len(batch), generator)
        told.losses.append(_step(customization, loss, optimizer, training.clip))
        schedule.step()
        times.append(time.perf_counter() - start)
        if not math.isfinite(told.losses[-1]):
            raise InputError(f"the loss is {told.losses[-1]} after {step + 1} steps: give a lower learning rate")
        if progress and step == TIMED:
            say(f"estimate from one step: about {times[-1] * training.steps:.0f} s")
    told.seconds_a_step = median(times)
    return told


def _optimizer(
    customization: Customization, training: Training
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    rate = training.learning_rate or customization.method.learning_rate
    optimizer = torch.optim.AdamW(customization.trained, rate, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / training.steps)
    return optimizer, schedule


def _prior_loss(model: TextToImage, noising: Any, prior: Prior, count: int, generator: torch.Generator) -> Tensor:
    """Return the weighted loss of ``count`` images that the base drew."""
    chosen = torch.randint(len(prior.images), (count,), generator=generator)
    context = model.prompt([prior.prompts[place] for place in chosen.tolist()]).detach()
    return prior.weight * noise_loss(model, noising, prior.images[chosen].to(model.device), context, generator)


def _step(customization: Customization, loss: Tensor, optimizer: torch.optim.Optimizer, clip: float) -> float:
    """Take one step down the gradient, cut to the norm ``clip``; return the loss before it."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(customization.trained, clip)
    optimizer.step()
    return loss.item()


def noise_loss(model: TextToImage, noising: Any, images: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
    """Return the mean squared error of the U-Net's prediction at random times.

    ``noising``: a DDPMScheduler; images: (N, C, H, W) in -1..1; context: what the U-Net attends to, (N, L, m).
    """
    latents = model.to_latents(images, generator)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    times = torch.randint(noising.config["num_train_timesteps"], (len(latents),), generator=generator).to(
        latents.device
    )
    target = noise if noising.config["prediction_type"] == "epsilon" else noising.get_velocity(latents, noise, times)
    return F.mse_loss(model.unet(noising.add_noise(latents, noise, times), times, context).sample, target)
