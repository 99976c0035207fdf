"""Write what stands in a row of ``table.json`` as the text of a cell."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.formats import percent

Row = Mapping[str, Any]
Notes = Mapping[str, int]
COSTS = {"macs": "MACs"}  # what a reduction can be of, beside parameters
STALE = "stale: made by an older revision; --rerun-stale runs it again"


def remarks(row: Row) -> list[str]:
    """List what the footnotes say of a row."""
    stale = STALE if row["stale"] else None
    quoted = row["source"] if row["status"] == "reported" else None
    return [text for text in (row["note"], quoted, row["reason"], stale) if text]


def notes_of(rows: Sequence[Row]) -> dict[str, int]:
    """Give footnotes their numbers, in the order of their first use."""
    texts = [text for row in rows for text in remarks(row)]
    return {text: number for number, text in enumerate(dict.fromkeys(texts), start=1)}


def shown_status(row: Row) -> str:
    """Return ``done``, ``stale``, ``skipped`` or ``reported``."""
    return "stale" if row["stale"] else str(row["status"])


def dense_text(row: Row, notes: Notes, digits: int) -> str:
    """Write the dense top-1, with the spread only in the dense model's row, which has nothing under ``top1``."""
    return percent(row["top1_dense"], row["top1_dense_std"] if row["protocol"] == "dense" else None, digits)


def after(row: Row) -> float | None:
    """Return the entry under "after FT": nothing in the dense model's row, and for what is not trained."""
    return None if row["protocol"] == "dense" or untrained(row) else row["top1"]


def before(row: Row) -> float | None:
    """Return the entry under "before FT": also the top-1 of what is not trained."""
    return row["top1"] if untrained(row) else row["top1_before_finetune"]


def untrained(row: Row) -> bool:
    """Tell whether nothing is trained in a row."""
    return str(row["protocol"]).startswith("training-free")


def after_text(row: Row, notes: Notes, digits: int) -> str:
    """Write the top-1 after fine-tuning."""
    return percent(after(row), row["top1_std"], digits)


def before_text(row: Row, notes: Notes, digits: int) -> str:
    """Write the top-1 before fine-tuning."""
    return percent(before(row), row["top1_std" if untrained(row) else "top1_before_std"], digits)


def top1(row: Row) -> float | None:
    """Return a row's top-1; the dense model's stands in another column."""
    return None if row["protocol"] == "dense" else row["top1"]


def top1_text(row: Row, notes: Notes, digits: int) -> str:
    """Write a row's top-1, with its spread."""
    return percent(top1(row), row["top1_std"], digits)


def status_text(row: Row, notes: Notes, digits: int) -> str:
    """Write the status, with the numbers of the footnotes."""
    return f"{shown_status(row)} {''.join(f'[{notes[text]}]' for text in remarks(row))}".strip()


def reduction_text(row: Row, notes: Notes, digits: int) -> str:
    """Write the share that is removed and, unless it is of the parameters, of what."""
    if row["reduction"] is None:
        return ""
    of = f" of {COSTS[row['cost']]}" if row["cost"] in COSTS else ""
    return f"{100 * row['reduction']:.0f}%{of}"
