"""Print what a benchmark measured, and write it as JSON with its provenance."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lowrank_vit.runtime import provenance
from lowrank_vit.runtime.files import write_json
from lowrank_vit.runtime.progress import WIDE


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column left, numbers right."""
    table = Table(title=title)
    for place, column in enumerate(header):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=WIDE).print(table)  # what a terminal breaks off cannot be read again


def command(arguments: Sequence[str]) -> str:
    """Return the command that repeats a benchmark, without the folders that lead to its files.

    >>> command(["/home/me/benchmarks/speed.py", "--data", "imagefolder:/data/images", "--json", "out.json"])
    'python -m benchmarks.speed --data imagefolder:images'
    """
    script, *rest = arguments
    kept = [word for before, word in zip(["", *rest], rest, strict=False) if "--json" not in (before, word)]
    shown = [re.sub(r"(^|:)[^:\s]*/", r"\1", word) for word in kept]
    return f"python -m benchmarks.{Path(script).stem} {shlex.join(shown)}".strip()


def write(
    path: Path | None,
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    data: Any,
    device: torch.device | None = None,
) -> None:
    """Write the table as it is printed, and the ``data`` behind it; nothing without a path. ``device``: None is the CPU."""
    if path is None:
        return
    made = provenance.record(device or torch.device("cpu"), 0, None)
    origin = {name: made[name] for name in ("git", "source", "versions", "device")}
    origin |= {"command": command(sys.argv), "threads": torch.get_num_threads()}
    write_json(path, {"title": title, "header": list(header), "rows": rows, "provenance": origin, "data": data})
