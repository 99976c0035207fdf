"""Images from prompts: DDIM with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowrank_vit.customize.text_to_image import TextToImage
from lowrank_vit.runtime.progress import progress_bars

BATCH_PIXELS = 256 * 8 * 8  # of the U-Net's input, in one batch


@torch.no_grad()
def sample(
    model: TextToImage,
    prompts: Sequence[str],
    new_word: str | None = None,
    *,
    guidance: float = 2.0,
    steps: int = 25,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Return an image (N, C, H, W) in -1..1 for every prompt, on the CPU; the seed draws the same on every device.

    ``guidance`` g: the noise is ``e + g (c - e)`` of the predictions e for the empty prompt and c for the prompt. Where the
    schedule clips the predicted image, the noise follows the clipped one: without that, guidance 2 drives the small digits
    into saturation (47 % of them are then recognised, instead of all).
    """
    from diffusers import DDIMScheduler

    generator, side = torch.Generator().manual_seed(seed), model.unet.config["sample_size"]
    start = torch.randn((len(prompts), model.unet.config["in_channels"], side, side), generator=generator)
    scheduler = DDIMScheduler.from_config(dict(model.schedule))
    scheduler.set_timesteps(steps)
    count = max(1, BATCH_PIXELS // side**2)
    images = []
    with progress_bars(progress) as bar:
        task = bar.add_task("sample", total=steps * -(-len(prompts) // count))
        for first in range(0, len(prompts), count):
            part = slice(first, first + count)
            latents = start[part].to(model.device)
            context = model.prompt([""] * len(latents) + list(prompts[part]), new_word)
            for time in scheduler.timesteps:
                empty, given = model.unet(torch.cat([latents, latents]), time, context).sample.chunk(2)
                noise = empty + guidance * (given - empty)
                latents = scheduler.step(noise, time, latents, use_clipped_model_output=True).prev_sample
                bar.advance(task)
            images.append(model.to_images(latents).cpu())
    return torch.cat(images)
