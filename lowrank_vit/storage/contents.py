"""What a model's folder holds, as its files tell it: the model is not made, and PyTorch not imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lowrank_vit.records.report import Report
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.storage.contents import (
    CONFIG,
    NESTED,
    REPORT,
    WEIGHTS,
    check_file,
    checked_report,
    checksums,
    nested_entry,
    read_config,
    read_json,
)

FILES = (CONFIG, WEIGHTS, REPORT)


def is_saved_model(folder: Path) -> bool:
    """Tell whether the folder holds a whole model."""
    return all((folder / name).is_file() for name in FILES)


def file_bytes(folder: str | Path) -> int:
    """Return the size of a saved model: bytes of its ``model.safetensors`` on disk."""
    return (Path(folder) / WEIGHTS).stat().st_size


def check_free(folder: Path, remedy: str = "choose another folder") -> None:
    """Raise ``InputError``, with a ``remedy``, unless ``folder`` can be made, or is empty: existing files are never lost."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise InputError(f"{folder} exists already: {remedy}")
    parent = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        reason = "permission denied, or a read-only disk" if parent.is_dir() else "it is not a folder"
        raise InputError(f"cannot write into {parent}: {reason}; choose another folder")


def load_model_args(folder: str | Path) -> dict[str, Any]:
    """Return the ``model_args`` that a model was saved with, so that what is made from it can be saved with them, too."""
    arguments = read_config(Path(folder)).get("model_args")
    return arguments if isinstance(arguments, dict) else {}


def load_report(folder: str | Path) -> Report:
    """Load the report of a saved model. Raises ``InputError`` if it is missing, was edited, or lacks a required entry."""
    folder = Path(folder)
    path, config = folder / REPORT, read_config(folder)
    value = read_json(path)
    check_file(config, path)
    try:
        report = checked_report(value)
    except ValueError as error:
        raise InputError(f"{path} is not a report ({error}): save the model again") from None
    return report


def check_contents(folder: str | Path) -> bool:
    """Raise ``InputError`` unless every file is the one that was saved; return whether there are checksums to tell by.

    Old folders have none: load their model to see. A nested folder from the hub may be without its large file.
    """
    folder = Path(folder)
    config = read_config(folder)
    check_file(config, folder / WEIGHTS)
    load_report(folder)
    if nested_entry(folder) is not None and (folder / NESTED).exists():
        check_file(config, folder / NESTED)
    return checksums(config) is not None
