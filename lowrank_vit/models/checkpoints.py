"""Read a checkpoint's tensors, of safetensors or of a file that PyTorch wrote, unpickling nothing; put them into a model."""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import ENTRY, entry_of

PYTORCH = (".pth", ".pt", ".ckpt", ".bin", ".tar")
REFUSED = (".npy", ".npz", ".pickle", ".pkl")
SHARE = 0.5  # of a model's tensors: fewer are no weights of it
PLAIN: list[Any] = [argparse.Namespace]  # the arguments of a training, in many checkpoints: it holds values and no code
logger = logging.getLogger(__name__)
SHOWN = 3  # how many culprits an error names


@dataclass(frozen=True)
class Checkpoint:
    """Hold the tensors of a checkpoint under a model's names; ``found``: where in the file they were."""

    tensors: Mapping[str, Tensor]
    found: str = ""


def read_checkpoint(path: Path, expected: Collection[str]) -> Checkpoint:
    """Read the weights of a model whose tensors are called ``expected`` from ``FILE`` or ``FILE#ENTRY``.

    A file of PyTorch's may hold them in an entry, such as "state_dict", and all names may share a prefix, such as
    "module."; both are taken off. ENTRY is the name of an entry, or a prefix, or one after the other ("model.backbone").
    Raises ``InputError`` for a file that is missing, broken or holds anything but plain values and tensors, and where
    several sets of weights are in it, as of a model and its moving average, and no ENTRY says which.
    """
    file, entry = entry_of(path)
    sets = {name: each for name, each in _sets(_content(file)).items() if each}
    names = set(expected)
    if entry is not None:
        return _chosen(sets, entry, names, file)
    fitting: dict[str, Mapping[str, Tensor]] = {}
    for name, tensors in sets.items():
        inner = {prefix: _below(tensors, prefix) for prefix in _prefixes(tensors, names)} or {"": tensors}
        fitting |= {".".join(filter(None, (name, prefix))): each for prefix, each in inner.items()}
    known = {place: each for place, each in fitting.items() if len(names & each.keys()) >= SHARE * len(names)}
    fitting = known or fitting
    if len(fitting) > 1:
        places = ", ".join(sorted(fitting))
        raise InputError(
            f"checkpoint {file} holds several sets of weights ({places}): choose one, as in {file.name}{ENTRY}{min(fitting)}"
        )
    if not fitting:
        raise InputError(f"checkpoint {file} holds no tensors by name: pass the state_dict of a model")
    ((place, found),) = fitting.items()
    return Checkpoint(found, place)


@functools.cache
def tensor_names(architecture: str) -> frozenset[str]:
    """Return the names of the tensors of a timm model, which neither classes nor the images' size change."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return frozenset(timm.create_model(architecture, pretrained=False).state_dict())


def _content(file: Path) -> Any:
    """Read a file, in which nothing but plain values and tensors may be."""
    if file.suffix.lower() in REFUSED:
        raise InputError(
            f"checkpoint {file} is a pickle or an array of NumPy's, which is not opened: pass a .safetensors file, or a "
            "state_dict that torch.save wrote (.pth, .pt, .ckpt, .bin)"
        )
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise InputError(f"checkpoint {file} {what}: pass a file of weights, such as .safetensors or .pth")
    if file.suffix.lower() in PYTORCH:
        return _from_pytorch(file)
    try:
        return safetensors.torch.load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"checkpoint {file} is truncated or not a safetensors file ({reason}): download or convert it again"
        ) from error


def _from_pytorch(file: Path) -> Any:
    try:
        with torch.serialization.safe_globals(PLAIN):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of the archive, the file or the restricted reader, which share no base class
        text = " ".join(str(error).split())
        if "GLOBAL " in text or "Unsupported" in text:
            culprit = text.partition("GLOBAL ")[2].split(" ")[0] or "an object"
            raise InputError(
                f"checkpoint {file} holds {culprit}, which could run code when it is opened: where you trust the file, save "
                "its weights alone, torch.save(model.state_dict(), file)"
            ) from None
        raise InputError(
            f"checkpoint {file} is truncated or not a file of torch.save ({text[:100] or type(error).__name__}): "
            "download or convert it again"
        ) from None


def _sets(content: Any) -> dict[str, dict[str, Tensor]]:
    """Find every set of tensors by name in a file's content, by its place: its own, or in entries of entries."""
    if not isinstance(content, Mapping):
        return {}
    own = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    inner = {
        f"{key}.{place}".rstrip("."): tensors
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Mapping)
        for place, tensors in _sets(value).items()
    }
    return ({"": own} if own else {}) | inner


def _prefixes(tensors: Mapping[str, Tensor], names: set[str]) -> list[str]:
    """Return the prefixes under which most of a model's names are; one that all names share need hold none of them."""
    if len(names & tensors.keys()) >= SHARE * len(names):
        return []
    shared = ""
    while tensors and len(firsts := {key.partition(".")[0] for key in tensors}) == 1 and "." in next(iter(tensors)):
        first = next(iter(firsts))
        tensors, shared = _below(tensors, first), f"{shared}.{first}".lstrip(".")
        if len(names & tensors.keys()) >= SHARE * len(names):
            return [shared]
    ends: dict[str, int] = {}
    for key in tensors:
        parts = key.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in names:
                prefix = ".".join(parts[:cut])
                ends[prefix] = ends.get(prefix, 0) + 1
    found = [prefix for prefix, count in ends.items() if count >= SHARE * len(names)]
    return [f"{shared}.{prefix}".lstrip(".") for prefix in found] or ([shared] if shared else [])


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    start = f"{prefix}."
    return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}


def _chosen(sets: Mapping[str, Mapping[str, Tensor]], entry: str, names: set[str], file: Path) -> Checkpoint:
    """Return the tensors that an ENTRY names: a place, a place and a prefix, or a prefix of the only names."""
    for place, tensors in sets.items():
        if entry == place:
            prefixes = _prefixes(tensors, names)
            return Checkpoint(_below(tensors, prefixes[0]) if len(prefixes) == 1 else tensors, entry)
    for place, tensors in sets.items():
        for prefix in (entry, entry.removeprefix(f"{place}.")):
            if below := _below(tensors, prefix):
                return Checkpoint(below, entry)
    known = {place or key.partition(".")[0] for place, tensors in sets.items() for key in tensors}
    raise InputError(f"checkpoint {file} has no {entry!r}: it has {', '.join(sorted(known)[:8]) or 'no tensors'}")


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
        f"{key} holds {str(tensors[key].dtype).removeprefix('torch.')}"
        for key in shared
        if tensors[key].is_floating_point() != expected[key].is_floating_point()
    ]
    broken = [key for key in shared if tensors[key].is_floating_point() and not tensors[key].isfinite().all()]
    sorts = {
        "missing": [key for key in expected if key not in tensors],
        "unexpected": [key for key in tensors if key not in expected],
        "wrong shape": shapes,
        "wrong type": kinds,
        "not finite": broken,
    }
    return "; ".join(f"{len(names)} {sort} ({_few(names)})" for sort, names in sorts.items() if names)


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
