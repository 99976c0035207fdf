"""``config.json`` of a model's folder, read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.storage.checksums import CONFIG, check_config
from lowrank_vit.storage.schema import parse_json

FORMATS = (1, 2)  # 2: with quantised layers, which readers of 1 do not know


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises ``InputError`` for a missing, broken or foreign file."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {path.parent} is not the folder of a compressed model") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): save the model again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object: save the model again")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json``. Raises ``InputError`` if its format is unknown, or if it was changed after it was saved."""
    path = folder / CONFIG
    config = read_json(path)
    entry = config.get("lowrank_vit")
    if not isinstance(entry, dict) or not isinstance(entry.get("layers"), dict):
        raise InputError(f"{path} has no 'lowrank_vit' entry: this is not a compressed model")
    if entry.get("format") not in FORMATS:
        raise InputError(
            f"{folder} is of format {entry.get('format')!r}, this version reads {FORMATS}: upgrade lowrank-vit"
        )
    check_config(config, path)
    return config


def nested_entry(folder: str | Path) -> dict[str, Any] | None:
    """Return the entry of ``config.json`` on the other sizes that the folder opens at; ``None`` if it is not nested."""
    entry = read_config(Path(folder))["lowrank_vit"].get("nested")
    return entry if isinstance(entry, dict) else None
