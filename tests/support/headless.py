"""Tiny models without a classifier."""

import timm
import torch
from torch import nn

from tests.support.models import ARGUMENTS, NAMES, tiny


def headless(kind: str = "vit") -> nn.Module:
    """A tiny model that returns pooled features, (B, n)."""
    model = tiny(kind)
    model.reset_classifier(0)
    return model


def token_model() -> nn.Module:
    """A tiny ViT that returns all of its tokens, (B, T, n)."""
    torch.manual_seed(0)
    arguments = {**ARGUMENTS["vit"], "num_classes": 0, "global_pool": ""}
    model = timm.create_model(NAMES["vit"][0], pretrained=False, **arguments).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model
