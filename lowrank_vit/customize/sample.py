"""Images: drawn from prompts by DDIM with classifier-free guidance, also as a prior, read from files, shown in a grid."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lowrank_vit.customize.text_to_image import TextToImage
from lowrank_vit.data.decoding import read_image, to_channels
from lowrank_vit.data.folders import SUFFIXES
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import write_bytes
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


@dataclass(frozen=True)
class Prior:
    """Hold images (N, C, H, W) in -1..1 that the base drew, the prompt of each, and the weight of their loss.

    Raises ``InputError`` for a weight that is not positive.
    """

    images: Tensor
    prompts: tuple[str, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise InputError(f"the prior's weight is {self.weight:g}: give one above zero, or no prior")


def draw_prior(
    model: TextToImage,
    prompts: Sequence[str],
    count: int,
    *,
    weight: float = 1.0,
    guidance: float = 2.0,
    seed: int = 0,
    progress: bool = False,
) -> Prior:
    """Let the base draw ``count`` images, cycling through the prompts; the seed draws the same on every device.

    Raises ``InputError`` for fewer images than prompts, a word that the model does not know, and a weight that is not
    positive.
    """
    if not prompts or count < len(prompts):
        raise InputError(f"{count} images for {len(prompts)} prompts of the prior: give at least one of each")
    named = tuple(prompts[place % len(prompts)] for place in range(count))
    images = sample(model, named, guidance=guidance, seed=seed, progress=progress)
    return Prior(images, named, weight)


def load_images(folder: Path, channels: int, side: int) -> Tensor:
    """Load all image files of a folder, cut to the square in the middle: (N, C, side, side) in -1..1.

    Raises ``InputError`` where there are none, and for one that cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: name a folder of image files")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{folder} holds no image files ({', '.join(SUFFIXES)}): put a few of the new thing there")
    images = []
    for path in files:
        image = to_channels(read_image(path.read_bytes(), str(path), side), channels)
        pixels = np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC), dtype=np.float32)
        images.append(torch.from_numpy(pixels.reshape(side, side, channels)).permute(2, 0, 1))
    return torch.stack(images).div(127.5).sub(1)


def save_grid(rows: list[Tensor], path: Path, *, enlarged: int = 1) -> None:
    """Write rows of images, each (N, C, H, W) in -1..1, below one another as a PNG; ``enlarged``: pixels for each."""
    grid = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    pixels = grid.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if enlarged > 1:
        picture = picture.resize((picture.width * enlarged, picture.height * enlarged), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    write_bytes(path, buffer.getvalue())
