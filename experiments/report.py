"""From results to ``table.json``, ``table.md``, ``table.csv`` and the plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.registry import Table
from experiments.results import FIELDS, finished, read_plan, table_json

Row = Mapping[str, Any]
PLOT = "accuracy_vs_params.png"
COLUMNS = (
    "Architecture",
    "Method",
    "Protocol",
    "Params printed",
    "Params measured",
    "Top-1 reported",
    "Top-1 dense",
    "before FT",
    "after FT",
    "Error held-out",
    "MACs",
    "Seconds",
    "Status",
)
TEXTS = 3  # columns that are aligned left
LEGEND = (
    "Top-1 in percent. Reported: printed in papers, on ImageNet; dense, before and after fine-tuning (FT): measured here, "
    "{}. Error: ||y - y'||² / ||y||² on held-out images, mean over the compressed layers. Seconds: a job, without what it "
    "shares: loading and evaluating the dense model."
)
STALE = "stale: made by another version of the package; --rerun-stale runs it again"


def human(count: float | None) -> str:
    """A count with three digits and its unit: ``51.9M``.

    >>> human(51_943_210), human(8_912), human(640)
    ('51.9M', '8.91k', '640')
    """
    if count is None:
        return ""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            value = count / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{unit}"
    return f"{count:.0f}"


def share(count: float | None, dense: float | None) -> str:
    """A count and what it saves: ``51.9M (-40.0%)``."""
    if count is None or not dense or count == dense:
        return human(count)
    return f"{human(count)} ({100 * (count / dense - 1):+.1f}%)"


def percent(value: float | None, spread: float | None = None, digits: int = 2) -> str:
    """A percentage, with its spread where there is one.

    >>> percent(81.8), percent(95.25, 0.5, digits=1)
    ('81.80', '95.2 ± 0.5')
    """
    return "" if value is None else f"{value:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def legend(rows: Sequence[Row]) -> str:
    """What the columns mean."""
    seeds = sorted({seed for row in rows for seed in row["seeds"] or ()})
    named = ", ".join(map(str, seeds))
    return LEGEND.format(f"mean ± standard deviation over seeds {named}" if len(seeds) > 1 else f"seed {named or '-'}")


def notes_of(rows: Sequence[Row]) -> dict[str, int]:
    """The footnotes, numbered in the order of their first use."""
    texts = [text for row in rows for text in _remarks(row)]
    return {text: number for number, text in enumerate(dict.fromkeys(texts), start=1)}


def _remarks(row: Row) -> list[str]:
    stale = STALE if row["stale"] else None
    quoted = row["source"] if row["status"] == "reported" else None
    return [text for text in (row["note"], quoted, row["reason"], stale) if text]


def cells(row: Row, notes: Mapping[str, int], digits: int = 2) -> list[str]:
    """A row as text, in the order of ``COLUMNS``; ``digits``: of measured percentages."""
    error, seconds = row["relative_error_held_out"], row["seconds"]
    marks = "".join(f"[{notes[text]}]" for text in _remarks(row))
    status = "stale" if row["stale"] else row["status"]
    dense = row["protocol"] == "dense"  # whose accuracy stands under "dense" alone
    return [
        row["architecture"],
        row["method"],
        row["protocol"],
        row["params_printed"] or "",
        share(row["params"], row["params_dense"]),
        percent(row["top1_reported"]),
        percent(row["top1_dense"], row["top1_dense_std"] if dense else None, digits),
        percent(row["top1_before_finetune"], row["top1_before_std"], digits),
        "" if dense else percent(row["top1"], row["top1_std"], digits),
        "" if error is None else f"{error:.4f}",
        human(row["macs"]),
        "" if seconds is None else f"{seconds:.1f}",
        f"{status} {marks}".strip(),
    ]


def markdown(table: Mapping[str, Any], command: str) -> str:
    """``table.md``."""
    notes = notes_of(table["rows"])
    rules = [":--" if index < TEXTS else "--:" for index in range(len(COLUMNS) - 1)] + [":--"]
    lines = [COLUMNS, rules, *(cells(row, notes) for row in table["rows"])]
    parts = [
        f"# {table['title']}",
        f"`{command}`",
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        legend(table["rows"]),
        "\n".join(f"[{number}] {text}  " for text, number in notes.items()),
        f"![accuracy against parameters]({PLOT})",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def csv_text(table: Mapping[str, Any]) -> str:
    """``table.csv``: the fields of ``table.json``, seeds separated by blanks, and the title in a column of its own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["title", *FIELDS])
    for row in table["rows"]:
        values = [" ".join(map(str, row[name])) if name == "seeds" and row[name] else row[name] for name in FIELDS]
        writer.writerow([table["title"], *values])
    return out.getvalue()


def write_report(results: Path, table: Table) -> dict[str, Any]:
    """Render the last run of the table into its folder among the results; returns the content of ``table.json``.

    Raises ``InputError`` where the table was never run.
    """
    from experiments.plots import save_figure, save_plot
    from lowrank_vit.files import write_json, write_text
    from lowrank_vit.provenance import source_hash

    plan, folder = read_plan(results, table), results / table.name
    content = table_json(results, table, plan, source_hash())
    write_json(folder / "table.json", content)
    if table.draw is not None:
        found = finished(results, plan)
        write_json(folder / f"{table.name}.json", {"title": content["title"], "rows": found})
        if found:
            save_figure(folder / table.name, table.draw(found, content["title"]))
        return content
    write_text(folder / "table.md", markdown(content, f"python -m experiments run {table.name}"))
    write_text(folder / "table.csv", csv_text(content))
    save_plot(folder / PLOT, content)
    return content
