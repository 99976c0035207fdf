"""Calibration statistics on disk, by the hash of what they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from lowrank_vit.errors import InputError
from lowrank_vit.files import write_tensors
from lowrank_vit.parallel import gathered, is_first_here
from lowrank_vit.records import Moments

FORMAT = 2  # of the statistics: raise it when their meaning changes


def cache_folder() -> Path:
    """The folder for everything that can be made again: ``LOWRANK_VIT_CACHE``, else ``~/.cache/lowrank_vit``."""
    return Path(os.environ.get("LOWRANK_VIT_CACHE") or Path.home() / ".cache" / "lowrank_vit").expanduser()


def model_hash(model: nn.Module) -> str:
    """A hash of all weights and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


def moments_key(model: nn.Module, images: str, sites: Iterable[str], needs: Iterable[str], seed: int) -> str:
    """The name of a cached file: weights, images (their fingerprint), sites, statistics, seed, format."""
    parts = [FORMAT, model_hash(model), images, sorted(sites), sorted(needs), seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def cached_moments(key: str, compute: Callable[[], dict[str, Moments]]) -> dict[str, Moments]:
    """What is cached under ``key``, else what ``compute`` gives, which is then cached. A broken file is made anew.

    Of several processes all compute together unless each has found it. Where it cannot be cached, a warning says so.
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
    tensors = {f"{name}|{key}": total for name, own in moments.items() for key, total in own.sums.items()}
    counts = {name: [own.images, own.tokens] for name, own in moments.items()}
    try:
        write_tensors(path, tensors, {"counts": json.dumps(counts)})
    except InputError as error:  # a full disk, perhaps: what they are needed for can still be done
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
