"""The small diffusion model with random weights, and what it computes."""

import torch
from torch import Tensor

from lowrank_vit.customize.customization import Customization, customized
from lowrank_vit.customize.deltas import DELTAS, Delta
from lowrank_vit.customize.digits import untrained
from lowrank_vit.customize.text_to_image import TextToImage

METHODS = DELTAS.names()
PROMPTS = ["normal V* digit", "inverted 3", ""]


def small(dtype: torch.dtype = torch.float64, seed: int = 0) -> TextToImage:
    """The small model, whose output layer does not begin near zero."""
    model = untrained(seed)
    for module in model.modules():
        module.to(dtype)
    return model


def outputs(model: TextToImage, prompts: list[str] | None = None, word: str | None = "V*") -> Tensor:
    """What the U-Net predicts for some noise, prompts and times."""
    generator = torch.Generator().manual_seed(3)
    prompts = PROMPTS if prompts is None else prompts
    dtype = next(model.unet.parameters()).dtype
    noise = torch.randn(len(prompts), 1, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    with torch.no_grad():
        return model.unet(noise, torch.tensor([1, 500, 999][: len(prompts)]), model.prompt(prompts, word)).sample


def moved(customization: Customization, size: float = 0.3) -> Customization:
    """Change all tensors at random, as a training would."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for tensor in customization.tensors.values():
            tensor += size * torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
    return customization


def attached(model: TextToImage, name: str, **settings: object) -> Customization:
    """A method by name, with the new word V*."""
    method: Delta = DELTAS.get(name)(**settings)
    return customized(model, method, "V*")
