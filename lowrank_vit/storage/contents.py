"""What a model's folder holds, as its files tell it, checked: the model is not made, and PyTorch not imported.

``config.json`` holds the sha256 of every other file that matters, and of itself without that entry: a file that was changed
after saving is not loaded. Folders from before there were checksums have none, and are loaded unchecked.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints, is_typeddict

from lowrank_vit.records.report import Report
from lowrank_vit.runtime.errors import InputError

CONFIG, WEIGHTS, REPORT = "config.json", "model.safetensors", "report.json"
CARD = "README.md"
NESTED = "nested.safetensors"  # what other sizes are cut from: several times as large as the rest
KEY = "sha256"
REMEDY = "it is truncated or was edited; fetch or save the folder again"
FORMATS = (1, 2)  # 2: with quantised layers, which readers of 1 do not know
FILES = (CONFIG, WEIGHTS, REPORT)


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


def parse_json(text: str) -> Any:
    """Parse JSON as the standard has it, without NaN and infinities, nested no deeper than Python can follow."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def checked_report(value: Mapping[str, Any]) -> Report:
    """Return the report if its entries have the types of the schema. Raises ``ValueError`` that names one that does not."""
    _check(value, Report, "the report")
    return cast(Report, value)


def _check(value: object, expected: Any, where: str) -> None:
    """Check a value of JSON against a type: a ``TypedDict``, a list or a dictionary of something, a union, a plain type."""
    origin, arguments = get_origin(expected), get_args(expected)
    if is_typeddict(expected):
        _check_entries(value, expected, where)
    elif origin is UnionType:
        if value is not None or NoneType not in arguments:
            _check(value, next(each for each in arguments if each is not NoneType), where)
    elif origin is list:
        if not isinstance(value, list):
            raise ValueError(f"{where} is not a list")
        for index, entry in enumerate(value):
            _check(entry, arguments[0], f"entry {index} of {where}")
    elif origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is not an object")
        for key, entry in value.items():
            _check(entry, arguments[1], f"{key} of {where}")
    elif expected is not Any:
        _check_plain(value, expected, where)


def _check_entries(value: object, expected: Any, where: str) -> None:
    """Check an object against a ``TypedDict``; unknown entries are allowed."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    for key, hint in get_type_hints(expected).items():
        if key in value:
            _check(value[key], hint, f"{key} of {where}")
        elif key in expected.__required_keys__:
            raise ValueError(f"{where} has no entry {key!r}")


def _check_plain(value: object, expected: type, where: str) -> None:
    """Check a text or a finite number; a whole number will do where any number does."""
    kinds = (int, float) if expected is float else (expected,)
    infinite = isinstance(value, int | float) and not math.isfinite(value)
    if not isinstance(value, kinds) or isinstance(value, bool) or infinite:
        raise ValueError(f"{where} is {value!r}")


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
