"""Weights from a safetensors file into a model, strictly; never from a pickle."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lowrank_vit.errors import InputError

PICKLES = (".bin", ".ckpt", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")
SHOWN = 3  # how many culprits an error names


def load_checkpoint(model: nn.Module, path: Path, name: str) -> None:
    """Put the tensors of the safetensors file ``path`` into ``model``, called ``name`` in errors, in place.

    Names and shapes must agree exactly; where only the names differ, timm's own conversion of the model family's older
    checkpoints is tried first. Floating-point tensors of another precision are converted to the model's.
    Raises ``InputError`` for a pickle, a file that is missing, truncated or junk, and any tensor that does not fit.
    """
    tensors = _read(path)
    own = model.state_dict()
    if tensors.keys() != own.keys() and not _wrong_shapes(tensors, own):
        tensors = _converted(tensors, model)
    trouble = _mismatch(tensors, own)
    if trouble:
        raise InputError(f"checkpoint {path} does not fit {name}: {trouble}; pass the checkpoint of this very model")
    model.load_state_dict(tensors)


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix.lower() in PICKLES:
        raise InputError(
            f"checkpoint {path} is a pickle, which can run code when it is opened: convert it where you trust it, with "
            "safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')"
        )
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"checkpoint {path} {what}: pass a .safetensors file")
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"checkpoint {path} is truncated or no safetensors file ({reason}): download or convert it again"
        ) from error


def _converted(tensors: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """The tensors under timm's present names: Swin's, for one, have been renamed since the first checkpoints."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        return convert(tensors, model)
    except Exception:  # made for this family's files only: on anything else the plain comparison tells the trouble
        return tensors


def _wrong_shapes(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    return [key for key in own if key in tensors and tensors[key].shape != own[key].shape]


def _mismatch(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What does not fit, the first few of each sort; empty where everything does."""
    shared = [key for key in own if key in tensors]
    shapes = [
        f"{key} is {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
        for key in _wrong_shapes(tensors, own)
    ]
    kinds = [
        f"{key} holds {str(tensors[key].dtype).removeprefix('torch.')}"
        for key in shared
        if tensors[key].is_floating_point() != own[key].is_floating_point()
    ]
    broken = [key for key in shared if tensors[key].is_floating_point() and not tensors[key].isfinite().all()]
    sorts = {
        "missing": [key for key in own if key not in tensors],
        "unexpected": [key for key in tensors if key not in own],
        "wrong shape": shapes,
        "wrong type": kinds,
        "not finite": broken,
    }
    return "; ".join(f"{len(found)} {sort} ({_few(found)})" for sort, found in sorts.items() if found)


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
