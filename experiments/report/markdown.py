"""Write a table as Markdown and as CSV."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.cells import Row, notes_of
from experiments.report.columns import Column, chosen, legend
from experiments.report.rows import FIELDS
from experiments.report.uncertainty import marked
from lowrank_vit.runtime.errors import InputError


def markdown(table: Mapping[str, Any], command: str | None, pictures: Sequence[str] = ("accuracy_vs_params",)) -> str:
    """Write ``table.md``. command: the last one that ran, if it is known; pictures: their files' names."""
    columns, rows = chosen(table["columns"]), table["rows"]
    notes = notes_of(rows)
    parts = [
        f"# {table['title']}",
        f"`{command}`" if command else "",
        "\n".join(table_lines(columns, rows)),
        legend(columns, rows),
        "\n".join(f"[{number}] {text}  " for text, number in notes.items()),
        "\n".join(f"- {text}" for text in table.get("findings", ())),
        *(f"![{name.replace('_', ' ')}]({name}.png)" for name in pictures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table_lines(columns: Sequence[Column], rows: Sequence[Row], digits: int = 2) -> list[str]:
    """Write the rows as a Markdown table. digits: of measured percentages."""
    notes = notes_of(rows)
    lines = [
        [column.header for column in columns],
        [":--" if column.kind == "text" else "--:" for column in columns],
        *([_cell(column.write(row, notes, digits)) for column in columns] for row in marked(rows)),
    ]
    return lines_of(lines)


def across_lines(columns: Sequence[Column], rows: Sequence[Row], name: str, digits: int = 2) -> list[str]:
    """Write the last column's values side by side: a line for equal other columns, a cell for each ``name``.

    ``name`` is that of a column, such as ``reduction``. Raises ``InputError`` where two rows claim one cell.
    """
    spread = next(column for column in columns if column.name == name)
    *shared, measured = [column for column in columns if column is not spread]
    notes, rows = notes_of(rows), list(marked(rows))
    heads = list(dict.fromkeys(spread.write(row, notes, digits) for row in sorted(rows, key=spread.value)))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault(tuple(_cell(column.write(row, notes, digits)) for column in shared), {})
        head = spread.write(row, notes, digits)
        if head in line:
            raise InputError(f"{row['id']} and another row share a cell: add a column that tells them apart")
        line[head] = _cell(measured.write(row, notes, digits))
    titles = [f"{measured.header}, {spread.header.lower()} {heads[0]}", *heads[1:]]
    rule = [":--" if column.kind == "text" else "--:" for column in shared]
    return lines_of(
        [
            [*(column.header for column in shared), *titles],
            [*rule, *["--:"] * len(heads)],
            *([*key, *(line.get(head, "") for head in heads)] for key, line in lines.items()),
        ]
    )


def lines_of(cells: Sequence[Sequence[str]]) -> list[str]:
    """Write the lines of a Markdown table, given the cells of each."""
    return [f"| {' | '.join(line)} |" for line in cells]


def _cell(text: str) -> str:
    """Write a cell, without anything that would end it."""
    return " ".join(text.split()).replace("|", "\\|")


def csv_text(table: Mapping[str, Any]) -> str:
    """Write ``table.csv``: the fields of ``table.json``, seeds separated by blanks, the title in a column of its own."""
    import pandas

    rows = [{**row, "seeds": " ".join(map(str, row["seeds"] or ()))} for row in table["rows"]]
    frame = pandas.DataFrame(rows, columns=FIELDS, dtype=object)
    frame.insert(0, "title", table["title"])
    return str(frame.to_csv(index=False))
