"""Files and folders written whole or not at all: under a temporary name beside the target, flushed, then renamed.

A temporary file or folder is locked by the process that writes it. The lock goes with the process, so what a killed one
left behind is known by it, and is removed when the same target is written again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from lowrank_vit.errors import InputError

TEMPORARY = ".tmp"  # how the name of everything unfinished ends


@contextmanager
def replacing(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A temporary path that takes the place of ``path`` when the block ends well, and vanishes when it does not.

    A file, or with ``folder`` an empty folder, whose place must be free. Raises ``InputError`` where it cannot be written,
    a full disk among the reasons; what was at ``path`` is there as before.
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
            "then run again: what was finished before is kept"
        ) from None


def _claim(path: Path, folder: bool) -> tuple[Path, int]:
    """A new temporary and the handle that locks it; another one where a sweep was quicker than the lock."""
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
    """Remove what killed processes left of ``path``."""
    for left in path.parent.iterdir():
        if not (left.name.startswith(f".{path.name}.") and left.name.endswith(TEMPORARY)):
            continue
        with suppress(OSError):  # it went by itself, or a living process holds it
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
    """Have the disk itself keep a file, or the names in a folder."""
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
    """A JSON file's content, with a final newline; NaN is refused, as no reader of JSON knows it."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file's content."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
