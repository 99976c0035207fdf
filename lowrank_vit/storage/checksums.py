"""The files of a model's folder, and their checksums: a file that was changed after saving is not loaded.

``config.json`` holds the sha256 of every other file that matters, and of itself without that entry. Folders from before
there were checksums have none, and are loaded unchecked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lowrank_vit.runtime.errors import InputError

CONFIG, WEIGHTS, REPORT = "config.json", "model.safetensors", "report.json"
CARD = "README.md"
NESTED = "nested.safetensors"  # what other sizes are cut from: several times as large as the rest
KEY = "sha256"
REMEDY = "it is truncated or was edited; fetch or save the folder again"


def file_hash(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config_hash(config: Mapping[str, Any]) -> str:
    """Hash the values of a configuration, not its text: indentation and the order of keys do not count."""
    entry = {name: value for name, value in config["lowrank_vit"].items() if name != KEY}
    text = json.dumps({**config, "lowrank_vit": entry}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(config: Mapping[str, Any], folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Return the configuration with the checksums of the files ``names`` of ``folder``, and of itself."""
    hashes = {**{name: file_hash(folder / name) for name in names}, CONFIG: _config_hash(config)}
    return {**config, "lowrank_vit": {**config["lowrank_vit"], KEY: hashes}}


def checksums(config: Mapping[str, Any]) -> Mapping[str, str] | None:
    """Return the checksums that a configuration holds; ``None`` if it is older than checksums are."""
    entry = config.get("lowrank_vit")
    hashes = entry.get(KEY) if isinstance(entry, dict) else None
    return hashes if isinstance(hashes, dict) else None


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raise ``InputError`` where the configuration in ``path`` was changed after it was saved."""
    known = checksums(config)
    if known is not None and known.get(CONFIG) != _config_hash(config):
        raise InputError(f"{path} does not have its checksum: it was edited; fetch or save the folder again")


def check_file(config: Mapping[str, Any], path: Path) -> None:
    """Raise ``InputError`` where the file ``path`` is not the one that was saved with ``config``."""
    known = checksums(config)
    if known is None:
        return
    try:
        actual = file_hash(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): fetch or save the folder again") from None
    if known.get(path.name) != actual:
        raise InputError(f"{path} does not have the checksum that config.json names: {REMEDY}")
