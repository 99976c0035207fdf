"""A frozen text-to-image model: U-Net, text model, schedule of the noise, and what turns images into what the U-Net sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.customize.text_to_image import Text
from lowrank_vit.modules.counting import model_hash
from lowrank_vit.runtime.errors import InputError

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass
class TextToImage:
    """Hold the parts of a model, all frozen. Images are (N, C, H, W) in -1..1.

    ``schedule`` is the configuration of a scheduler of diffusers; ``autoencoder`` None: the U-Net works on pixels.
    Raises ``InputError`` for a U-Net that needs more than a prompt, or whose prediction is of another kind.
    """

    unet: Any
    text: Text
    schedule: Mapping[str, Any]
    autoencoder: Any = None

    def __post_init__(self) -> None:
        config = self.unet.config
        for name in ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim"):
            if config.get(name) is not None:
                raise InputError(f"this U-Net needs more than a prompt ({name}={config[name]!r}): choose one without")
        kind = self.schedule.get("prediction_type", "epsilon")
        if kind not in PREDICTIONS:
            raise InputError(f"the model predicts {kind!r}: only {' and '.join(PREDICTIONS)} are customised")
        for module in self.modules():
            module.requires_grad_(False).eval()

    def modules(self) -> list[nn.Module]:
        """List the parts that have weights."""
        return [part for part in (self.unet, self.text.encoder, self.autoencoder) if part is not None]

    def to(self, device: torch.device) -> TextToImage:
        """Move all parts to a device, in place."""
        for module in self.modules():
            module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Return the device of the U-Net."""
        return next(self.unet.parameters()).device

    @property
    def channels(self) -> int:
        """Count the channels of an image."""
        config = self.unet.config if self.autoencoder is None else self.autoencoder.config
        return int(config["in_channels"])

    @property
    def side(self) -> int:
        """Return the height and the width of an image in pixels."""
        sample = self.unet.config["sample_size"]
        if not isinstance(sample, int):
            raise InputError(f"the U-Net's sample_size is {sample!r}: only square images are taken")
        return (
            sample
            if self.autoencoder is None
            else sample * 2 ** (len(self.autoencoder.config["block_out_channels"]) - 1)
        )

    def hash(self) -> str:
        """Hash the weights that a delta is made for: of the U-Net and the text model, wherever they are."""
        return model_hash(nn.ModuleDict({"unet": self.unet, "text": self.text.encoder}))

    def prompt(self, prompts: Sequence[str], new_word: str | None = None) -> Tensor:
        """Return what the U-Net attends to, (N, L, m)."""
        return self.text.encode(self.text.tokens(prompts, new_word))

    @torch.no_grad()
    def to_latents(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the U-Net's inputs for images: the images, or a scaled draw of the autoencoder's code."""
        if self.autoencoder is None:
            return images
        code = self.autoencoder.encode(images).latent_dist
        noise = torch.randn(code.mean.shape, generator=generator).to(images)
        return (code.mean + code.std * noise) * self.autoencoder.config["scaling_factor"]

    @torch.no_grad()
    def to_images(self, latents: Tensor) -> Tensor:
        """Return the images that the U-Net's inputs stand for."""
        if self.autoencoder is None:
            return latents.clamp(-1, 1)
        return self.autoencoder.decode(latents / self.autoencoder.config["scaling_factor"]).sample.clamp(-1, 1)
