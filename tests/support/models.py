"""Small untrained timm models, random images, and how near two models are."""

from collections.abc import Iterable, Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.modules.counting import input_size, multiply_accumulates
from lowrank_vit.records.sites import AttentionSite, MlpSite
from tests.support import small_models  # noqa: F401  (they register with timm)

VIT = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 10}
SWIN = {"img_size": 16, "patch_size": 2, "in_chans": 1, "embed_dim": 8, "window_size": 4, "num_classes": 10}
SWIN |= {"depths": (2, 2), "num_heads": (2, 2)}
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
    return stirred(timm.create_model(name, pretrained=False, **arguments).eval(), 0.3 if kind in LONE else 0.1)


def stirred(model: Any, size: float = 0.1) -> Any:
    """The model with noise on all of its weights, so that every part matters."""
    for parameter in model.parameters():
        parameter.data += size * torch.randn_like(parameter)
    return model


def small_vit(depth: int = 2, noise: float = 0.05, **arguments: Any) -> Any:
    """A small ViT for images of 32 pixels with three channels."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "num_classes": 10, "depth": depth, **arguments}
    return stirred(timm.create_model(NAMES["vit"][0], **sizes).eval(), noise)


def headless(kind: str = "vit") -> nn.Module:
    """A tiny model that returns pooled features, (B, n)."""
    model = tiny(kind)
    model.reset_classifier(0)
    return model


def token_model() -> nn.Module:
    """A tiny ViT that returns all of its tokens, (B, T, n)."""
    torch.manual_seed(0)
    return stirred(timm.create_model(NAMES["vit"][0], **{**VIT, "num_classes": 0, "global_pool": ""}).eval())


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


def inputs_of(model: nn.Module, names: Iterable[str], data: Tensor) -> dict[str, Tensor]:
    """What modules are given for these images, by their names."""
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]}))
        for name in names
    ]
    outputs(model, data)
    for hook in hooks:
        hook.remove()
    return seen


def distance(small: nn.Module, dense: nn.Module, data: Tensor) -> float:
    """How far a model's outputs are from another's, in shares of these."""
    expected = outputs(dense, data)
    return float((outputs(small, data) - expected).norm() / expected.norm())


def macs(model: nn.Module) -> int:
    """Multiply-accumulates of one image."""
    size = input_size(model)
    assert size is not None
    return multiply_accumulates(model, size)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all tensors of a model."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: nn.Module | Mapping[str, Tensor], other: nn.Module | Mapping[str, Tensor]) -> bool:
    """Whether two models, or what ``weights`` has of them, are the same to the last bit."""
    left, right = (each.state_dict() if isinstance(each, nn.Module) else each for each in (one, other))
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
