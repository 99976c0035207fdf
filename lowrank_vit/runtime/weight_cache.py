"""Weights that were trained here, kept in the cache: trained once, whoever asks."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors.torch
from filelock import FileLock
from safetensors import SafetensorError
from torch import nn

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.tensors import write_tensors


def trained_once(model: nn.Module, path: Path, train: Callable[[], nn.Module]) -> nn.Module:
    """Return ``model`` with the weights at ``path``; where there are none, return what ``train`` gives, and keep its weights.

    If several processes ask at once, the first one trains and the others wait. A damaged file is replaced, with a warning.
    Where the folder is not writable, the trained model is returned with a warning.
    """
    if _restore(model, path):
        return model
    with _one_at_a_time(path):
        if not _restore(model, path):  # another process may have trained it while this one waited
            model = train()
            _store(model, path)
    return model


def _restore(model: nn.Module, path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        warnings.warn(f"the cached model {path} is damaged and is trained again: {reason}", stacklevel=4)
        return False
    return True


def _store(model: nn.Module, path: Path) -> None:
    try:
        write_tensors(path, model.state_dict())
    except InputError as error:
        warnings.warn(f"the trained model could not be cached at {path}: {error}", stacklevel=4)


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
