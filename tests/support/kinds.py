"""timm's kinds of models, each at the smallest size that timm makes it in, and what a recipe family does with it."""

from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tests.support.models import stirred

SIZE = 32  # pixels
PLAIN = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 4}
SWIN = {"img_size": SIZE, "patch_size": 4, "embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4), "window_size": 4}
IMAGE = {"img_size": SIZE}
MAXVIT = {"depths": (1, 1), "embed_dim": (32, 32), "stem_width": 8}
CROSSVIT = {"img_size": 120, "embed_dim": (16, 24), "depth": ((1, 1, 0),), "num_heads": (2, 2), "mlp_ratio": (2, 2, 1)}
PYRAMID = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}


@dataclass(frozen=True)
class Kind:
    """A timm name and what to shrink it by. ``layers``, ``halves``: the refusal by recipes for single layers, by ``best``.

    None: they compress it. ``left``: what is beside its blocks, and is told.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=lambda: PLAIN)
    layers: str | None = None
    halves: str | None = None
    left: str | None = None
    size: int = SIZE

    def make(self) -> nn.Module:
        """An untrained model in which every layer matters, float64."""
        torch.manual_seed(0)
        model = timm.create_model(self.name, pretrained=False, num_classes=10, **self.arguments)
        return stirred(model.double().eval(), 0.02)

    def images(self, count: int) -> Tensor:
        """Random images."""
        shape = (count, 3, self.size, self.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def vit(**arguments: Any) -> dict[str, Any]:
    return {**PLAIN, **arguments}


UNKNOWN, NO_BLOCKS = "not known as a whole", "stands in a block"
OTHER_BLOCKS, NORMALISED = "has blocks of the kind", "normalises its hidden units"
VIT = "vit_tiny_patch16_224"
KINDS = {
    "vit": Kind(VIT),
    "distilled deit": Kind("deit_tiny_distilled_patch16_224"),
    "deit iii": Kind("deit3_small_patch16_224"),
    "no qkv bias": Kind(VIT, vit(qkv_bias=False)),
    "layer scale": Kind(VIT, vit(init_values=0.1)),
    "q and k norm": Kind(VIT, vit(qk_norm=True)),
    "value norm": Kind(VIT, vit(scale_attn_norm=True), halves="normalises its values"),
    "registers": Kind(VIT, vit(reg_tokens=3)),
    "average pooling": Kind(VIT, vit(global_pool="avg", class_token=False)),
    "attention pooling": Kind("vit_base_patch16_siglip_224", left="attn_pool.q"),
    "hybrid": Kind("vit_tiny_r_s16_p8_224", {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 64}, size=64),
    "swiglu": Kind("vit_giant_patch14_dinov2", vit(mlp_ratio=2.5)),
    "swiglu, apart": Kind("aimv2_large_patch14_224", vit(mlp_ratio=2)),
    "normalised hidden units": Kind(VIT, vit(scale_mlp_norm=True), halves=NORMALISED),
    "parallel scaling": Kind("vit_large_patch14_xp_224", halves=UNKNOWN),
    "parallel things": Kind("vit_small_patch16_18x2_224"),
    "post norm": Kind("vit_relpos_base_patch32_plus_rpn_256"),
    "relative position mlp": Kind("vit_srelpos_small_patch16_224"),
    "cait": Kind("cait_xxs24_224", vit(depth_token_only=1), left="blocks_token_only.0.attn.q"),
    "xcit": Kind("xcit_nano_12_p16_224", halves=UNKNOWN, left="cls_attn_blocks.0.attn.q"),
    "beit": Kind("beit_base_patch16_224"),
    "beit, shared": Kind("beit_base_patch16_224", vit(use_rel_pos_bias=False, use_shared_rel_pos_bias=True)),
    "eva": Kind("eva_giant_patch14_224", vit(mlp_ratio=2)),
    "eva02": Kind("eva02_tiny_patch14_224"),
    "eva02, apart": Kind("eva02_base_patch14_224", halves=NORMALISED),
    "rotary vit": Kind("vit_medium_patch16_rope_reg1_gap_256"),
    "mixed rotation": Kind("vit_small_patch16_rope_mixed_224"),
    "dinov3": Kind("vit_small_patch16_dinov3"),
    "perception encoder": Kind("vit_pe_core_tiny_patch16_384", vit(attn_pool_num_heads=4), left="attn_pool.q"),
    "swin": Kind("swin_tiny_patch4_window7_224", SWIN),
    "swin v2": Kind("swinv2_tiny_window8_256", SWIN),
    "swin v2 cr": Kind("swinv2_cr_tiny_224", SWIN, halves=UNKNOWN),
    "hiera": Kind("hiera_tiny_224", {"img_size": 64, "embed_dim": 16, "stages": (1, 1, 1, 1)}, halves=UNKNOWN, size=64),
    "mixer": Kind("small_mixer", {}),
    "gated mixer": Kind("small_gated_mixer", {}),
    "resmlp": Kind("small_resmlp", {}, halves=UNKNOWN),
    "gmlp": Kind("small_gmlp", {}, halves=UNKNOWN),
    "convnext": Kind("convnext_tiny", PYRAMID),
    "convnext, convolutions": Kind("convnext_atto", PYRAMID, layers=NO_BLOCKS, halves=NO_BLOCKS),
    "convnext v2": Kind("convnextv2_tiny", PYRAMID, halves=UNKNOWN),
    "pit": Kind(
        "pit_ti_224", {**IMAGE, "base_dims": (8, 8, 8), "depth": (1, 1, 1), "heads": (2, 2, 2)}, halves=OTHER_BLOCKS
    ),
    "volo": Kind("small_volo", {}, halves=UNKNOWN),
    "davit": Kind(
        "davit_tiny", {"depths": (1, 1), "embed_dims": (16, 32), "num_heads": (2, 4), "window_size": 4}, halves=UNKNOWN
    ),
    "maxvit": Kind("maxvit_pico_rw_256", {"img_size": 64, **MAXVIT}, halves=UNKNOWN, size=64),
    "crossvit": Kind("crossvit_tiny_240", CROSSVIT, halves=UNKNOWN, size=120),
    "resnet": Kind("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}, layers=NO_BLOCKS, halves=UNKNOWN),
    "mobilevit": Kind("mobilevit_xxs", {}, halves=OTHER_BLOCKS),
}
