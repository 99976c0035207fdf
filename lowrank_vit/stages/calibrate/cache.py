"""A cache of calibration statistics on disk, keyed by the hash of what they depend on."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from lowrank_vit.modules.counting import model_hash
from lowrank_vit.records.moments import Moments
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import cache_folder
from lowrank_vit.runtime.processes import gathered, is_first_here
from lowrank_vit.runtime.tensors import write_tensors

FORMAT = 3  # of the statistics: raise it when their meaning changes


def moments_key(model: nn.Module, images: str, sites: Iterable[str], needs: Iterable[str], seed: int) -> str:
    """Return the name of a cached file: a hash of weights, image fingerprint, sites, statistics, seed and format."""
    parts = [FORMAT, model_hash(model), images, sorted(sites), sorted(needs), seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def cached_moments(key: str, compute: Callable[[], dict[str, Moments]]) -> dict[str, Moments]:
    """Return the moments cached under ``key``; otherwise compute and cache them. A broken file is replaced.

    Several processes compute together unless every one of them has the file. A warning says when caching fails.
    """
    path = cache_folder() / "moments" / f"{key}.safetensors"
    known = _read(path)
    if all(gathered(known is not None)) and known is not None:
        return known
    moments = compute()
    if known is None and is_first_here():
        _write(path, moments)
    return moments


def _write(path: Path, moments: Mapping[str, Moments]) -> None:
    tensors = {f"{name}|{key}": total for name, layer in moments.items() for key, total in layer.sums.items()}
    counts = {name: [layer.images, layer.tokens] for name, layer in moments.items()}
    try:
        write_tensors(path, tensors, {"counts": json.dumps(counts)})
    except InputError as error:  # perhaps a full disk: the run can go on without the cache
        warnings.warn(f"the statistics are not cached: {error}", stacklevel=3)


def _read(path: Path) -> dict[str, Moments] | None:
    if not path.exists():
        return None
    try:
        return _load(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _load(path: Path) -> dict[str, Moments]:
    with safe_open(path, "pt") as file:
        counts = json.loads(file.metadata()["counts"])
        sums: dict[str, dict] = {name: {} for name in counts}
        for entry in file.keys():  # noqa: SIM118 (not a dict)
            name, _, statistic = entry.rpartition("|")
            sums[name][statistic] = file.get_tensor(entry)
    return {name: Moments(images, tokens, sums[name]) for name, (images, tokens) in counts.items()}
