"""Small untrained vision transformers around torch's own attention, which neither timm nor transformers made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from tests.support.kinds import KINDS
from tests.support.models import stirred


class Encoded(nn.Module):
    """A ViT of ``nn.TransformerEncoder``."""

    def __init__(self, *, batch_first: bool = True, **options: object) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=batch_first, **options)  # type: ignore[arg-type]
        self.batch_first, self.stem = batch_first, nn.Conv2d(3, 32, 8, 8)
        self.token, self.positions = nn.Parameter(torch.zeros(1, 1, 32)), nn.Parameter(torch.zeros(1, 17, 32))
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        x = self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        logits: Tensor = self.head(x[:, 0])
        return logits


class Listed(nn.Module):
    """A ViT of layers in a list of another name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 32, 8, 8), nn.Linear(32, 10)
        self.stack = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(2)
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        for layer in self.stack:
            x = layer(x)
        logits: Tensor = self.head(x.mean(1))
        return logits


class ResidualAttentionBlock(nn.Module):
    """A block as open_clip has it."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attn, self.ls_1, self.ls_2 = nn.MultiheadAttention(32, 4, batch_first=True), nn.Identity(), nn.Identity()
        self.mlp = nn.Sequential()
        for name, part in (("c_fc", nn.Linear(32, 64)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(64, 32))):
            self.mlp.add_module(name, part)

    def forward(self, q_x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        y = self.ln_1(q_x)
        x = q_x + self.ls_1(self.attn(y, y, y, need_weights=False, attn_mask=attn_mask)[0])
        return x + self.ls_2(self.mlp(self.ln_2(x)))


ResidualAttentionBlock.__module__ = "open_clip.transformer"


class Tower(nn.Module):
    """A vision tower as open_clip has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.ln_post, self.proj = nn.Conv2d(3, 32, 8, 8), nn.LayerNorm(32), nn.Linear(32, 10)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(ResidualAttentionBlock() for _ in range(2))
        self.image_size = (32, 32)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).mT
        for block in self.transformer.resblocks:  # type: ignore[union-attr]
            x = block(x, attn_mask=None)
        pooled: Tensor = self.proj(self.ln_post(x.mean(1)))
        return pooled


Tower.__module__ = "open_clip.transformer"


class CLIP(nn.Module):
    """A whole CLIP as open_clip has it: a tower for images, and blocks for texts."""

    def __init__(self, visual: nn.Module | None = None) -> None:
        super().__init__()
        self.visual, self.transformer = Tower() if visual is None else visual, nn.Module()
        self.transformer.resblocks = nn.ModuleList(ResidualAttentionBlock() for _ in range(2))
        self.token_embedding, self.logit_scale = nn.Embedding(50, 32), nn.Parameter(torch.ones([]))
        self.text_projection = nn.Parameter(torch.randn(32, 10) / 6)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        features = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        x = self.token_embedding(text)
        for block in self.transformer.resblocks:  # type: ignore[union-attr]
            x = block(x, attn_mask=torch.full((text.shape[1],) * 2, float("-inf")).triu(1).to(x))
        features = x[:, -1] @ self.text_projection
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> tuple[Tensor | None, ...]:
        images = None if image is None else self.encode_image(image, normalize=True)
        texts = None if text is None else self.encode_text(text, normalize=True)
        return images, texts, self.logit_scale.exp()


CLIP.__module__ = "open_clip.model"


class Headed(nn.Module):
    """A backbone, and a head."""

    def __init__(self, backbone: nn.Module, features: int = 10) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(features, 7)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images))
        return logits


@dataclass(frozen=True)
class Kind:
    """How a model is made, its class's name, whether its outputs can be refitted, and its family."""

    build: Callable[[], nn.Module]
    name: str
    walks: bool = True
    family: str = "torch_encoder"
    size: int = 32
    logits: bool = True  # whether queries and keys shrink, too

    def make(self) -> nn.Module:
        """A model in which every part matters, float64."""
        torch.manual_seed(0)
        return stirred(self.build().double().eval())

    def images(self, count: int) -> Tensor:
        """Random images."""
        return torch.randn(
            count, 3, self.size, self.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )


def swin(**parts: Any) -> nn.Module:
    """A Swin of torchvision's; its feature maps of 36 pixels are padded to whole windows, those of 32 are not."""
    return SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10, **parts)


V2 = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
SWIN = {"name": "SwinTransformer", "family": "torchvision_swin"}

TORCH = {
    "torchvision's swin": Kind(swin, **SWIN),
    "torchvision's swin, padded": Kind(swin, size=36, **SWIN),
    "torchvision's swin v2": Kind(lambda: swin(**V2), size=36, logits=False, **SWIN),
    "torchvision's vit": Kind(lambda: VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10), "VisionTransformer"),
    "open_clip's tower": Kind(Tower, "VisionTransformer"),
    "encoder, norm first": Kind(lambda: Encoded(norm_first=True, activation="gelu"), "nn.TransformerEncoder"),
    "encoder, norm last": Kind(Encoded, "nn.TransformerEncoder"),
    "encoder, batch second": Kind(lambda: Encoded(batch_first=False), "nn.TransformerEncoder", walks=False),
    "layers in a list": Kind(Listed, "nn.TransformerEncoderLayer"),
}
HELD = {"backbone and head": Kind(lambda: Headed(KINDS["vit"].make()), "Headed")}
CLIPS = {
    "open_clip's CLIP": Kind(CLIP, "CLIP"),
    "timm's tower": Kind(lambda: CLIP(Headed(KINDS["vit"].make())), "CLIP"),
}
