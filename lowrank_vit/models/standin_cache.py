"""Trained stand-ins on disk: one safetensors file for each architecture, recipe and seed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import timm
from torch import nn

from lowrank_vit.models.standin_training import RECIPE, train_standin
from lowrank_vit.runtime.files import cache_folder
from lowrank_vit.runtime.tensors import trained_once


def trained_standin(name: str, seed: int = 0) -> nn.Module:
    """Return the stand-in ``name`` of training run ``seed`` in eval mode: from the cache, else trained now and cached.

    If several processes ask at once, the first one trains and the others wait. A damaged file is replaced,
    with a warning. A model that cannot be cached, because the folder is not writable, is returned with a warning.
    """
    model = timm.create_model(name).eval()
    path = cache_folder() / "standins" / f"{name}-seed{seed}-{_fingerprint(model)}.safetensors"
    return trained_once(model, path, lambda: train_standin(name, seed))


def _fingerprint(model: nn.Module) -> str:
    """Hash what the weights depend on besides the seed: the architecture, the normalisation and the recipe."""
    content = {
        "architecture": repr(model),  # the activation, the window shifts and the like do not show in the shapes
        "shapes": {key: list(tensor.shape) for key, tensor in model.state_dict().items()},
        "data": timm.data.resolve_model_data_config(model),
        "recipe": asdict(RECIPE),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
