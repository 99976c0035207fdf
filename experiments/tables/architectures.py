"""Name the models of the tables: timm's names with their tags, and the stand-ins of the embedded default."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Name a model of the table: its rows' prefix, its label, timm's name with the tag, and its stand-in."""

    id: str
    label: str
    model: str
    standin: str | None


DEIT_B = Architecture("deit_b", "DeiT-B", "deit_base_patch16_224.fb_in1k", "digits_deit_base")
DEIT_S = Architecture("deit_s", "DeiT-S", "deit_small_patch16_224.fb_in1k", "digits_deit_small")
VIT_B = Architecture("vit_b", "ViT-B", "vit_base_patch16_224.augreg_in21k_ft_in1k", "digits_vit_base")
SWIN_B = Architecture("swin_b", "Swin-B", "swin_base_patch4_window7_224.ms_in22k_ft_in1k", "digits_swin_base")
DEIT_T = Architecture("deit_t", "DeiT-Tiny", "deit_tiny_patch16_224.fb_in1k", None)
OF_FIGURES = (DEIT_B, VIT_B, SWIN_B, DEIT_T)
VIT_L = Architecture("vit_l", "ViT-L", "vit_large_patch16_224.augreg_in21k_ft_in1k", "digits_vit_base")
