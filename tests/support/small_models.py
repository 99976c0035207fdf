"""Small forms of timm's models whose own constructors fix their sizes, registered with timm under names of their own."""

from typing import Any

from timm.layers import GatedMlp, GluMlp
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from timm.models.volo import VOLO
from torch import nn

MIXER = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_blocks": 2}
MIXERS: dict[str, dict[str, Any]] = {
    "small_mixer": {"mlp_ratio": (0.5, 2.0)},
    "small_gated_mixer": {"mlp_ratio": (1.0, 4.0), "mlp_layer": GluMlp, "act_layer": nn.SiLU},
    "small_resmlp": {"mlp_ratio": 2, "block_layer": ResBlock, "norm_layer": Affine},
    "small_gmlp": {"mlp_ratio": 2, "block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp},
}
VOLO_SIZES = {"layers": (1, 1, 1, 1), "embed_dims": (16, 24, 24, 24), "num_heads": (2, 3, 3, 3), "stem_hidden_dim": 8}
CONFIG = {"input_size": (3, 32, 32), "num_classes": 10, "classifier": "head"}
default_cfgs = generate_default_cfgs(
    {**{name: {**CONFIG, "first_conv": "stem.proj"} for name in MIXERS}, "small_volo": {**CONFIG, "first_conv": ()}}
)


def _register(name: str) -> None:
    def make(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(MlpMixer, name, pretrained, **{**MIXER, **MIXERS[name], **kwargs})

    make.__name__ = name
    register_model(make)


for each in MIXERS:
    _register(each)


@register_model
def small_volo(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(VOLO, "small_volo", pretrained, **{"img_size": 32, **VOLO_SIZES, **kwargs})
