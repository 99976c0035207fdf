"""From a model's name to a model with weights."""

from __future__ import annotations

import difflib
from pathlib import Path

import huggingface_hub
import timm
from torch import nn

from lowrank_vit.errors import InputError
from lowrank_vit.hub import hub_reachable
from lowrank_vit.models.cache import trained_standin
from lowrank_vit.models.checkpoints import load_checkpoint
from lowrank_vit.models.standins import STANDINS, is_standin
from lowrank_vit.registry import unknown

NEAREST = 5  # timm knows over a thousand models: an error lists only these many


def load_model(name: str, checkpoint: Path | None = None, *, seed: int = 0) -> nn.Module:
    """The timm model or stand-in ``name`` with weights: in eval mode, float32, on the CPU.

    The weights come from ``checkpoint``, a safetensors file that is loaded strictly; without one, a stand-in is the
    result of its training run ``seed`` (cached), and any other model is timm's pretrained one (from the hub).
    Raises ``InputError`` for an unknown name, a checkpoint that does not fit, or weights that cannot be fetched.
    """
    _check_name(name)
    if checkpoint is not None:
        model = timm.create_model(name, pretrained=False)
        load_checkpoint(model, Path(checkpoint), name)
    elif is_standin(name):
        model = trained_standin(name, seed)
    else:
        model = _pretrained(name)
    return model.float().cpu().eval()


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=NEAREST, cutoff=0.5)
        raise unknown("model", name, near or STANDINS)
    tags = timm.models.get_arch_pretrained_cfgs(architecture)
    if tag and name not in tags:
        raise unknown("pretrained tag of a model", name, tags)


def _pretrained(name: str) -> nn.Module:
    """timm's own weights, from the hub's local cache or the hub: safetensors only, never a pickle."""
    config = timm.models.get_pretrained_cfg(name)
    file = (config and config.hf_hub_filename) or "model.safetensors"
    if config is None or not config.hf_hub_id or not file.endswith(".safetensors"):
        raise InputError(f"the hub has no safetensors weights of {name!r}: pass --checkpoint FILE.safetensors")
    model = timm.create_model(name, pretrained=False)
    load_checkpoint(model, _fetch(name, config.hf_hub_id, file), name)
    return model


def _fetch(name: str, repository: str, file: str) -> Path:
    """The hub's file on this disk."""
    repository, _, revision = repository.partition("@")
    cached = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision or None)
    if isinstance(cached, str):
        return Path(cached)
    remedy = "pass --checkpoint FILE.safetensors"
    if not hub_reachable():
        raise InputError(f"the pretrained weights of {name!r} are not cached, and the hub cannot be reached: {remedy}")
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision or None))
    except Exception as error:  # the hub's, the HTTP client's and the file system's errors share no base class
        reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        raise InputError(f"the pretrained weights of {name!r} cannot be fetched ({reason}): {remedy}") from error
