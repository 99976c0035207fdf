"""Small untrained timm models and random images."""

import timm
import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.records.sites import AttentionSite, MlpSite
from tests.support import small_models  # noqa: F401  (they register with timm)

VIT = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 10}
SWIN = {
    "img_size": 16,
    "patch_size": 2,
    "in_chans": 1,
    "embed_dim": 8,
    "depths": (2, 2),
    "num_heads": (2, 2),
    "window_size": 4,
    "num_classes": 10,
}
NAMES = {"vit": ("vit_tiny_patch16_224", VIT), "swin": ("swin_tiny_patch4_window7_224", SWIN)}
KINDS = sorted(NAMES)
MIXER = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 12, "num_classes": 10}
SIZES = {"depths": (2, 1, 1, 1), "dims": (8, 12, 12, 12), "ls_init_value": 1.0}
LONE: dict[str, tuple[str, dict]] = {  # models with MLPs alone
    "mixer": ("small_mixer", {**MIXER, "mlp_ratio": (1.0, 2.0)}),
    "gated mixer": ("small_gated_mixer", {**MIXER, "mlp_ratio": (2.0, 3.0)}),
    "convnext": ("convnext_tiny", {"in_chans": 1, "num_classes": 10, **SIZES}),
}
WALKED = [*KINDS, "padded", *LONE]
# what timm is told besides the number of classes, which the model knows
ARGUMENTS = {kind: {k: v for k, v in arguments.items() if k != "num_classes"} for kind, (_, arguments) in NAMES.items()}


def modules_of(model: nn.Module) -> list[AttentionSite | MlpSite]:
    """All attention modules and MLPs of a model."""
    return family_of(model).modules(model)


def tiny(kind: str = "vit", seed: int = 0) -> nn.Module:
    """A tiny model of a kind, with weights large enough that every layer matters."""
    torch.manual_seed(seed)
    name, arguments = {**NAMES, **LONE}[kind]
    model = timm.create_model(name, pretrained=False, **arguments).eval()
    for parameter in model.parameters():
        parameter.data += (0.3 if kind in LONE else 0.1) * torch.randn_like(parameter)
    return model


def images(count: int, kind: str = "vit", seed: int = 1) -> Tensor:
    """Random images of the size that the model takes."""
    size = {**NAMES, **LONE}[kind][1].get("img_size", 40)
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def padded_swin() -> nn.Module:
    """A grid of 6 x 6 tokens in windows of 4 x 4, shifted in every second block."""
    torch.manual_seed(0)
    arguments = {**SWIN, "img_size": 12, "always_partition": True}
    return timm.create_model(NAMES["swin"][0], pretrained=False, **arguments).eval().double()


def model_and_images(kind: str, count: int = 24) -> tuple[nn.Module, Tensor]:
    if kind == "padded":
        return padded_swin(), torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(1)).double()
    return tiny(kind).double(), images(count, kind).double()


def outputs(model: nn.Module, data: Tensor) -> Tensor:
    """What the model says, without a graph."""
    with torch.no_grad():
        return model(data)
