"""Files and folders written whole or not at all: under a temporary name beside the target, flushed, then renamed.

A temporary file or folder is locked by the process that writes it. The lock ends with the process, so what
a killed process left behind is not locked, and is removed when the same target is written again.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from lowrank_vit.runtime.errors import InputError

ENTRY = "#"  # between a checkpoint's file and the entry of it that is meant
TEMPORARY = ".tmp"  # suffix of everything unfinished


def cache_folder() -> Path:
    """Return the folder for all that can be made again: ``LOWRANK_VIT_CACHE``, else ``~/.cache/lowrank_vit``."""
    return Path(os.environ.get("LOWRANK_VIT_CACHE") or Path.home() / ".cache" / "lowrank_vit").expanduser()


def given_path(text: str) -> Path:
    """Return the path that a user wrote, with ``~`` in full. Raises ``InputError`` for the home of nobody."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{text}: there is no such user's home") from None


def entry_of(path: Path) -> tuple[Path, str | None]:
    """Split ``FILE#ENTRY`` into the file and the entry of it, None where a whole file is named."""
    name, mark, entry = path.name.partition(ENTRY)
    return (path, None) if not mark or path.exists() else (path.with_name(name), entry)


@contextmanager
def replacing(path: Path, *, folder: bool = False, over: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` if the block succeeds, and is removed if it fails.

    The path is of a new file or, with ``folder``, of an empty folder. ``path`` must be free for a folder, unless it goes
    ``over`` what is there, which is put aside first, and back if that fails. Raises ``InputError`` if it cannot be written,
    for example on a full disk; what was at ``path`` is then unchanged.
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
            with _aside(path) if over and path.is_dir() else nullcontext():
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


@contextmanager
def _aside(folder: Path) -> Iterator[None]:
    """Put a folder aside, and remove it if the block succeeds; put it back if not. A killed process leaves it aside."""
    former = folder.with_name(f".{folder.name}.former")
    _remove(former)
    folder.rename(former)
    try:
        yield
    except BaseException:
        former.rename(folder)
        raise
    _remove(former)


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


def json_text(value: Mapping[str, Any]) -> str:
    """Return a JSON file's content, with a final newline. Raises ``ValueError`` for NaN, which JSON does not have."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
