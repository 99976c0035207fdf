"""Small untrained models of Hugging Face's transformers, one of each class that is known; imported where it is installed."""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.support.models import stirred

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IMAGE = {"image_size": 32, "patch_size": 8}
WINDOWS = {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4, "image_size": 40, "patch_size": 4}
CLASSES = {"num_labels": 10}


@dataclass(frozen=True)
class Kind:
    """A class, its configuration's, and what is changed in it; ``tower``: it stands in the vision part of another one."""

    whole: str
    config: str
    changes: dict[str, Any] = field(default_factory=lambda: {**SIZES, **IMAGE})
    classes: bool = False
    tower: bool = False

    def make(self) -> nn.Module:
        """A model in which every part matters, float64."""
        torch.manual_seed(0)
        changes: dict[str, Any] = {"vision_config": self.changes} if self.tower else dict(self.changes)
        config = getattr(transformers, self.config)(**changes, **(CLASSES if self.classes else {}))
        return stirred(getattr(transformers, self.whole)(config).double().eval())

    def images(self, count: int) -> Tensor:
        """Random images."""
        shape = (count, 3, self.changes["image_size"], self.changes["image_size"])
        return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


DINO = {**SIZES, **IMAGE, "mlp_ratio": 2}
DINO.pop("intermediate_size")
GATED = {**DINO, "use_swiglu_ffn": True, "mlp_ratio": 3}
HUGGING_FACE = {
    "vit": Kind("ViTForImageClassification", "ViTConfig", classes=True),
    "vit, pooled": Kind("ViTModel", "ViTConfig"),
    "deit": Kind("DeiTForImageClassification", "DeiTConfig", classes=True),
    "deit, distilled": Kind("DeiTForImageClassificationWithTeacher", "DeiTConfig", classes=True),
    "dinov2": Kind("Dinov2Model", "Dinov2Config", DINO),
    "dinov2, swiglu": Kind("Dinov2ForImageClassification", "Dinov2Config", GATED, classes=True),
    "dinov2, registers": Kind("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", DINO),
    "siglip": Kind("SiglipVisionModel", "SiglipVisionConfig"),
    "siglip, classes": Kind("SiglipForImageClassification", "SiglipConfig", classes=True, tower=True),
    "clip": Kind("CLIPVisionModelWithProjection", "CLIPVisionConfig"),
    "clip, classes": Kind("CLIPForImageClassification", "CLIPConfig", classes=True, tower=True),
    "swin": Kind("SwinForImageClassification", "SwinConfig", WINDOWS, classes=True),
    "swin, pooled": Kind("SwinModel", "SwinConfig", WINDOWS),
}
