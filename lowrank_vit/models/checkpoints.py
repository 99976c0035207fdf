"""Read a checkpoint's tensors, of safetensors or of a file that PyTorch wrote, unpickling nothing; put them into a model."""

import argparse
import functools
import json
import logging
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lowrank_vit.runtime.errors import InputError, reason_of
from lowrank_vit.runtime.files import ENTRY, entry_of

ZIP, PICKLE = b"PK", b"\x80"  # how files of torch.save begin
POINTER = b"version https://git-lfs"
SINGLE, INDEX, OLD = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"  # in a folder of weights
REFUSED = (".npy", ".npz", ".pickle", ".pkl")
SHARE = 0.5  # of a model's tensors: fewer are no weights of it
SCALAR = np.float64(0).__reduce__()[0]  # what makes a number of NumPy's again
PLAIN: list[Any] = [  # of the arguments and results of a training, in many checkpoints: they hold values and no code
    argparse.Namespace,
    PosixPath,
    PurePosixPath,
    SCALAR,
    (SCALAR, "numpy.core.multiarray.scalar"),  # as NumPy 1 called it
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")),
]
logger = logging.getLogger(__name__)
SHOWN = 3  # how many culprits an error names


@dataclass(frozen=True)
class Checkpoint:
    """Hold the tensors of a checkpoint under a model's names; ``found``: where in the file they were."""

    tensors: Mapping[str, Tensor]
    found: str = ""


def read_checkpoint(path: Path, expected: Collection[str]) -> Checkpoint:
    """Read the weights of a model whose tensors are called ``expected`` from ``FILE`` or ``FILE#ENTRY``, or a folder.

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
        inner = {prefix: _around(tensors, prefix, names) for prefix in _prefixes(tensors, names)} or {"": tensors}
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


def tensor_names(architecture: str, arguments: Mapping[str, Any] | None = None) -> frozenset[str]:
    """Return the names of the tensors of a timm model, which neither classes nor the images' size change."""
    return _names(architecture, json.dumps(dict(arguments or {}), sort_keys=True, default=repr))


@functools.cache
def _names(architecture: str, arguments: str) -> frozenset[str]:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            model = timm.create_model(architecture, pretrained=False, **json.loads(arguments))
        except Exception:  # making the model says what is wrong with the arguments
            model = timm.create_model(architecture, pretrained=False)
        return frozenset(model.state_dict())


def _content(file: Path) -> Any:
    """Read a file, in which nothing but plain values and tensors may be."""
    if file.suffix.lower() in REFUSED:
        raise InputError(
            f"checkpoint {file} is a pickle or an array of NumPy's, which is not opened: pass a .safetensors file, or a "
            "state_dict that torch.save wrote (.pth, .pt, .ckpt, .bin)"
        )
    if file.is_dir():
        return _content(_in_folder(file))
    if not file.is_file():
        raise InputError(f"checkpoint {file} does not exist: pass a file of weights, such as .safetensors or .pth")
    with file.open("rb") as opened:
        start = opened.read(len(POINTER))
    if start == POINTER:
        raise InputError(f"checkpoint {file} is a pointer of Git LFS, not the file itself: fetch it by git lfs pull")
    if file.name.endswith(".index.json"):
        return _shards(file)
    named = file.suffix.lower() == ".safetensors"
    if start.startswith((ZIP, PICKLE)) and not named:
        return _from_pytorch(file)
    try:
        return safetensors.torch.load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        kind = "safetensors file" if named else "file of torch.save or safetensors"
        raise InputError(
            f"checkpoint {file} is truncated or not a {kind} ({reason_of(error)}): download or convert it again"
        ) from error


def _in_folder(folder: Path) -> Path:
    found = next((folder / name for name in (SINGLE, INDEX, OLD) if (folder / name).is_file()), None)
    if found is None:
        raise InputError(f"checkpoint {folder} is a folder without {SINGLE}, {INDEX} or {OLD}: pass a file of weights")
    return found


def _shards(index: Path) -> dict[str, Tensor]:
    """Read the files that an index names, all of them beside it."""
    try:
        files = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        beside = all(isinstance(name, str) and Path(name).name == name for name in files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"checkpoint {index} is no index of weights ({error!r}): download it again") from None
    if not beside:
        raise InputError(f"checkpoint {index} names files in other folders: put them beside it")
    shards = [_content(index.with_name(name)) for name in files]
    return {name: tensor for shard in shards for name, tensor in shard.items()}


def _from_pytorch(file: Path) -> Any:
    try:
        with torch.serialization.safe_globals(PLAIN):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of the archive, the file or the restricted reader, which share no base class
        text = " ".join(str(error).split())
        if "TorchScript" in text:
            raise InputError(
                f"checkpoint {file} is a TorchScript archive, which holds code: save the weights alone, "
                "torch.save(torch.jit.load(file).state_dict(), other)"
            ) from None
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


def _around(tensors: Mapping[str, Tensor], prefix: str, names: set[str]) -> dict[str, Tensor]:
    """Return the tensors below a prefix, and those above it that a model has, too: of a head beside its backbone."""
    found, parts = _below(tensors, prefix), prefix.split(".")[:-1]
    for count in range(len(parts), -1, -1):
        above = _below(tensors, ".".join(parts[:count])) if count else tensors
        found = {name: tensor for name, tensor in above.items() if name in names} | found
    return found


def _chosen(sets: Mapping[str, Mapping[str, Tensor]], entry: str, names: set[str], file: Path) -> Checkpoint:
    """Return the tensors that an ENTRY names: a place, a place and a prefix, or a prefix of the only names."""
    for place, tensors in sets.items():
        if entry == place:
            prefixes = _prefixes(tensors, names)
            return Checkpoint(_around(tensors, prefixes[0], names) if len(prefixes) == 1 else tensors, entry)
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


def _mismatch(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Describe what does not fit, the first few of each sort; return an empty string if everything fits."""
    shared = [key for key in expected if key in tensors]
    shapes = [
        f"{key} is {tuple(tensors[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in shared
        if tensors[key].shape != expected[key].shape
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
