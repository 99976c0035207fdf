"""The folder from which an interrupted command resumes: ``.NAME.unfinished`` beside ``--out``, locked by one process."""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowrank_vit.cli.arguments import check_out
from lowrank_vit.runtime.errors import InputError

LOCK = "lock"


def _beside(out: Path) -> Path:
    """Name the folder of ``out``."""
    named = out if out.name not in ("", "..") else out.resolve()
    return named.with_name(f".{named.name}.unfinished")


def check_new(args: argparse.Namespace) -> None:
    """Raise ``InputError`` unless ``--out`` is free, before PyTorch is imported.

    What a killed process left beside it is cleared by ``unfinished``, which comes first then.
    """
    if not _beside(args.out).exists():
        check_out(args)


@contextmanager
def unfinished(out: Path, folders: Sequence[Path] = ()) -> Iterator[Path]:
    """Yield the folder to the block that makes ``out``, or ``folders`` in it.

    The folder is removed once they are complete, or if it is empty. Its lock ends with the process.
    Raises ``InputError`` while another process holds it, and where it cannot be written.
    """
    from lowrank_vit.runtime.processes import agreed, is_first
    from lowrank_vit.storage import folder as storage

    folder = _beside(out)
    lock, refused = _locked(folder, out) if is_first() else (None, None)
    refused = agreed(refused)
    if refused is not None:
        raise InputError(refused)
    try:
        yield folder
    finally:
        if lock is not None:
            if all(map(storage.is_saved_model, folders or (out,))) or [path.name for path in folder.iterdir()] == [
                LOCK
            ]:
                shutil.rmtree(folder, ignore_errors=True)
            lock.release()


def _locked(folder: Path, out: Path) -> tuple[Any, str | None]:
    """Return the lock, or the reason why it is refused."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        return None, f"another process is at work on {out}: wait for it, or choose another --out"
    except OSError as error:
        return None, f"cannot write beside {out}: {error.strerror or error}; choose another --out"
    return lock, None
