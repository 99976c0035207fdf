"""Put the weights of a checkpoint into a model, strictly."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lowrank_vit.models.checkpoints import read_checkpoint
from lowrank_vit.runtime.errors import InputError

logger = logging.getLogger(__name__)
SHOWN = 3  # how many culprits an error names


def load_checkpoint(model: nn.Module, path: Path, name: str) -> None:
    """Put the tensors of the file ``path`` into ``model``, called ``name`` in errors, in place.

    ``path``: of safetensors or of PyTorch, as ``read_checkpoint`` takes it.
    Names and shapes must agree exactly; where they do not, timm's own conversion of the model family's older checkpoints
    is tried first, which may rename and reshape tensors, but not resample them to another size. A model without a
    classifier leaves the file's where it is. Floating-point tensors of another precision are converted to the model's.
    Raises ``InputError`` for a file that is missing, truncated, junk or unsafe, and any tensor that does not fit.
    """
    expected = model.state_dict()
    checkpoint = read_checkpoint(path, expected)
    tensors = checkpoint.tensors
    if checkpoint.found:
        logger.warning("checkpoint %s: its %d tensors of %s are taken", path, len(tensors), checkpoint.found)
    if tensors.keys() != expected.keys():
        tensors = _converted(tensors, model)
    if getattr(model, "num_classes", None) == 0:
        tensors = _features_only(tensors, expected, model)
    trouble = _mismatch(tensors, expected)
    if trouble:
        raise InputError(f"checkpoint {path} does not fit {name}: {trouble}; pass a checkpoint of this model")
    model.load_state_dict(tensors)


def _converted(tensors: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Return the tensors under timm's present names: Swin's, for one, have been renamed since the first checkpoints."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        converted: Mapping[str, Tensor] = convert(dict(tensors), model)
    except Exception:  # it converts this family's files only: for others the comparison names what does not fit
        return tensors
    resampled = Counter(map(Tensor.numel, converted.values())) - Counter(map(Tensor.numel, tensors.values()))
    return tensors if resampled else converted


def _features_only(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], model: nn.Module
) -> Mapping[str, Tensor]:
    """Return the tensors without those of the classifier, of which a distilled DeiT has two."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    return {key: tensor for key, tensor in tensors.items() if key in expected or not key.startswith(heads)}


def _wrong_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    return [key for key in expected if key in tensors and tensors[key].shape != expected[key].shape]


def _mismatch(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Describe what does not fit, the first few of each sort; return an empty string if everything fits."""
    shared = [key for key in expected if key in tensors]
    shapes = [
        f"{key} is {tuple(tensors[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in _wrong_shapes(tensors, expected)
    ]
    kinds = [
        f"{key} holds {_kind(tensors[key])}"
        for key in shared
        if _odd(tensors[key]) or tensors[key].is_floating_point() != expected[key].is_floating_point()
    ]
    plain = [key for key in shared if not _odd(tensors[key])]
    broken = [key for key in plain if tensors[key].is_floating_point() and not tensors[key].isfinite().all()]
    sorts = {
        "missing": [key for key in expected if key not in tensors],
        "unexpected": [key for key in tensors if key not in expected],
        "wrong shape": shapes,
        "wrong type": kinds,
        "not finite": broken,
    }
    return "; ".join(f"{len(names)} {sort} ({_few(names)})" for sort, names in sorts.items() if names)


def _odd(tensor: Tensor) -> bool:
    """Tell whether a tensor's values are not there one by one."""
    return tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided


def _kind(tensor: Tensor) -> str:
    words = [str(tensor.dtype).removeprefix("torch.")]
    words += ["without values (meta)"] if tensor.is_meta else []
    words += [str(tensor.layout).removeprefix("torch.")] if tensor.layout != torch.strided else []
    return ", ".join(words)


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
