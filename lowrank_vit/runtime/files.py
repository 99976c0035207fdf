"""Files and folders written whole or not at all: under a temporary name beside the target, flushed, then renamed.

A temporary file or folder is locked by the process that writes it. The lock ends with the process, so what
a killed process left behind is not locked, and is removed when the same target is written again.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from lowrank_vit.runtime.errors import InputError

TEMPORARY = ".tmp"  # suffix of everything unfinished
METADATA = {"format": "pt"}  # of a model's safetensors file
CODES = {  # of a safetensors file
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def cache_folder() -> Path:
    """Return the folder for all that can be made again: ``LOWRANK_VIT_CACHE``, else ``~/.cache/lowrank_vit``."""
    return Path(os.environ.get("LOWRANK_VIT_CACHE") or Path.home() / ".cache" / "lowrank_vit").expanduser()


def given_path(text: str) -> Path:
    """Return the path that a user wrote, with ``~`` in full. Raises ``InputError`` for the home of nobody."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{text}: there is no such user's home") from None


@contextmanager
def replacing(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` if the block succeeds, and is removed if it fails.

    The path is of a new file or, with ``folder``, of an empty folder, for which ``path`` must be free. Raises
    ``InputError`` if it cannot be written, for example on a full disk; what was at ``path`` is then unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary, handle = _claim(path, folder)
        try:
            yield temporary
            for written in (*temporary.glob("*"), temporary):
                _flush(written)
            temporary.chmod(0o755 if folder else 0o644)
            temporary.replace(path)
            _flush(path.parent)
        finally:
            _remove(temporary)
            os.close(handle)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose a folder that can be written, "
            "then run again: finished work is kept"
        ) from None


def _claim(path: Path, folder: bool) -> tuple[Path, int]:
    """Make a temporary and the handle that locks it; retry if a sweep removed it before it was locked."""
    while True:
        if folder:
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent))
            handle = os.open(temporary, os.O_RDONLY)
        else:
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
            temporary = Path(name)
        with suppress(OSError):  # a file system without locks: then nothing is swept either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, handle
        os.close(handle)


def _sweep(path: Path) -> None:
    """Remove the temporaries of ``path`` that killed processes left behind."""
    for left in path.parent.iterdir():
        if not (left.name.startswith(f".{path.name}.") and left.name.endswith(TEMPORARY)):
            continue
        with suppress(OSError):  # it is gone already, or a living process holds it
            handle = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(left)
            finally:
                os.close(handle)


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file whole."""
    write_text(path, json_text(value))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file whole."""
    write_bytes(path, tensor_bytes(tensors, metadata))


def json_text(value: Mapping[str, Any]) -> str:
    """Return a JSON file's content, with a final newline. Raises ``ValueError`` for NaN, which JSON does not have."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return a safetensors file's content."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)


def tensor_bytes_count(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> int:
    """Count the bytes of a safetensors file without making it; the tensors may be on the device ``meta``.

    After eight bytes for its length, the header in JSON, padded to a multiple of eight; the widest types come first.
    """
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        begin, end = end, end + tensor.numel() * tensor.itemsize
        entries[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + math.ceil(len(header) / 8) * 8 + end
