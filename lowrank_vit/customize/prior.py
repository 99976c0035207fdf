"""Prior preservation: what the base draws is learnt along, so that it is not forgotten (Ruiz et al. 2022, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lowrank_vit.customize.sample import sample
from lowrank_vit.customize.text_to_image import TextToImage
from lowrank_vit.runtime.errors import InputError


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
