"""Find the tables of this folder, and the rows that a command line names."""

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import replace

from experiments.tables.rows import Row, Table
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import unknown

FOLDER = "experiments.tables"
PREFIXES = ("table", "figure")  # of the modules that hold a table


def tables() -> dict[str, Table]:
    """Return the ``TABLE`` of every module here that is called ``table...`` or ``figure...``, by its name."""
    return {name: _table(name) for name in _names()}


def _names() -> list[str]:
    folder = importlib.import_module(FOLDER)
    return [module.name for module in pkgutil.iter_modules(folder.__path__) if module.name.startswith(PREFIXES)]


def _table(name: str) -> Table:
    """Import one table: those that name methods' titles import PyTorch."""
    module = importlib.import_module(f"{FOLDER}.{name}")
    table: Table = replace(module.TABLE, name=name, about=module.__doc__ or "")
    return table


def find_all(targets: Sequence[str], whole: bool = False) -> list[tuple[Table, list[Row]]]:
    """Find the tables that the targets name, each with its selected rows; ``all`` is every table and figure.

    Raises ``InputError`` with the nearest name and, for ``whole`` tables, for a target that names rows.
    """
    chosen: dict[str, tuple[Table, dict[str, Row]]] = {}
    for target in _names() if "all" in targets else targets:
        table, name = find(target)
        if whole and name is not None:
            raise InputError(f"{target!r} names rows, where a whole table is wanted: {table.name}")
        _, rows = chosen.setdefault(table.name, (table, {}))
        rows |= {row.id: row for row in table.select(name)}
    return [(table, list(rows.values())) for table, rows in chosen.values()]


def find(target: str) -> tuple[Table, str | None]:
    """Find the table and the row of ``TABLE`` or ``TABLE/ROW``. Raises ``InputError`` with the nearest name."""
    name, _, row = target.partition("/")
    known = _names()
    if name not in known:
        raise unknown("table", name, known)
    return _table(name), row or None
