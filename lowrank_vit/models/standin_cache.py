"""Trained stand-ins on disk: one safetensors file for each architecture, recipe and seed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import timm
from filelock import FileLock
from safetensors import SafetensorError
from torch import nn

from lowrank_vit.models.standin_training import RECIPE, train_standin
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import cache_folder, write_tensors


def trained_standin(name: str, seed: int = 0) -> nn.Module:
    """Return the stand-in ``name`` of training run ``seed`` in eval mode: from the cache, else trained now and cached.

    If several processes ask at once, the first one trains and the others wait. A damaged file is replaced,
    with a warning. A model that cannot be cached, because the folder is not writable, is returned with a warning.
    """
    model = timm.create_model(name).eval()
    path = cache_folder() / "standins" / f"{name}-seed{seed}-{_fingerprint(model)}.safetensors"
    if _restore(model, path):
        return model
    with _one_at_a_time(path):
        if not _restore(model, path):  # another process may have trained it while this one waited
            model = train_standin(name, seed)
            _store(model, path)
    return model


def _fingerprint(model: nn.Module) -> str:
    """Hash what the weights depend on besides the seed: the architecture, the normalisation and the recipe."""
    content = {
        "architecture": repr(model),  # the activation, the window shifts and the like do not show in the shapes
        "shapes": {key: list(tensor.shape) for key, tensor in model.state_dict().items()},
        "data": timm.data.resolve_model_data_config(model),
        "recipe": asdict(RECIPE),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _restore(model: nn.Module, path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        warnings.warn(f"the cached stand-in {path} is damaged and is trained again: {reason}", stacklevel=3)
        return False
    return True


def _store(model: nn.Module, path: Path) -> None:
    try:
        write_tensors(path, model.state_dict())
    except InputError as error:
        warnings.warn(f"the trained stand-in could not be cached at {path}: {error}", stacklevel=3)


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock beside ``path`` within the block; none if the folder is not writable, since nothing is written then."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()
