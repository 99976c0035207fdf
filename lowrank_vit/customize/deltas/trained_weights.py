"""Methods that train weights of the U-Net itself: Custom Diffusion some of them, DreamBooth all, textual inversion none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from lowrank_vit.customize.deltas import DELTAS, Attached, attentions


@DELTAS.register("custom_diffusion")
@dataclass(frozen=True)
class KeyValue:
    """Train keys and values of the attentions to the prompt, and the new word's vector (Kumari et al. 2022).

    Without that paper's regularisation images.
    """

    learning_rate: float = 1e-5

    trains_word: ClassVar[bool] = True

    def attach(self, unet: nn.Module, generator: torch.Generator) -> Attached:
        found = attentions(unet, "cross")
        return unfrozen(
            {
                f"{name}.{layer}.weight": getattr(found[name], layer).weight
                for name in found
                for layer in ("to_k", "to_v")
            }
        )


@DELTAS.register("dreambooth")
@dataclass(frozen=True)
class Everything:
    """Train all weights of the U-Net (Ruiz et al. 2022), without that paper's prior preservation."""

    learning_rate: float = 5e-6

    trains_word: ClassVar[bool] = False

    def attach(self, unet: nn.Module, generator: torch.Generator) -> Attached:
        return unfrozen(dict(unet.named_parameters()))


@DELTAS.register("textual_inversion")
@dataclass(frozen=True)
class WordAlone:
    """Train the new word's vector alone (Gal et al. 2022)."""

    learning_rate: float = 5e-4

    trains_word: ClassVar[bool] = True

    def attach(self, unet: nn.Module, generator: torch.Generator) -> Attached:
        """Leave the U-Net as it is."""
        return unfrozen({})


def unfrozen(parameters: Mapping[str, nn.Parameter]) -> Attached:
    """Train parameters in place, so that merging changes nothing; detaching copies the former values back."""
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)

    @torch.no_grad()
    def detach() -> None:
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
            parameter.requires_grad_(False)

    return Attached(dict(parameters), lambda: None, detach)
