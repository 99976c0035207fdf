"""Write a table as Markdown, as CSV and as LaTeX."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas

from experiments.report.columns import Column, chosen, legend, notes_of
from experiments.report.rows import FIELDS
from experiments.report.uncertainty import Row, marked
from lowrank_vit.runtime.errors import InputError

END = "\\end{table}\n"


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
    cells = [[column.write(row, notes, digits) for column in columns] for row in marked(rows)]
    return lines_of([(column.header, column.kind) for column in columns], cells)


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
        line = lines.setdefault(tuple(column.write(row, notes, digits) for column in shared), {})
        head = spread.write(row, notes, digits)
        if head in line:
            raise InputError(f"{row['id']} and another row share a cell: add a column that tells them apart")
        line[head] = measured.write(row, notes, digits)
    titles = [f"{measured.header}, {spread.header.lower()} {heads[0]}", *heads[1:]]
    kinds = [(column.header, column.kind) for column in shared] + [(title, "number") for title in titles]
    return lines_of(kinds, [[*key, *(line.get(head, "") for head in heads)] for key, line in lines.items()])


def lines_of(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a Markdown table, given the name and the kind of each column, and cells, without anything that would end them."""
    rule = [":--" if kind == "text" else "--:" for _, kind in heads]
    cells = ([" ".join(text.split()).replace("|", "\\|") for text in row] for row in rows)
    return [f"| {' | '.join(line)} |" for line in ([name for name, _ in heads], rule, *cells)]


def csv_text(table: Mapping[str, Any]) -> str:
    """Write ``table.csv``: the fields of ``table.json``, seeds separated by blanks, the title in a column of its own."""
    rows = [{**row, "seeds": " ".join(map(str, row["seeds"] or ()))} for row in table["rows"]]
    frame = pandas.DataFrame(rows, columns=FIELDS, dtype=object)
    frame.insert(0, "title", table["title"])
    return str(frame.to_csv(index=False))


def latex(table: Mapping[str, Any], name: str) -> str:
    """Write ``table.tex``: the table, and below it what is said of it."""
    columns, rows, notes = chosen(table["columns"]), table["rows"], notes_of(table["rows"])
    cells = [[column.write(row, notes, 2) for column in columns] for row in marked(rows)]
    text = pandas.DataFrame(cells, columns=[column.header for column in columns]).to_latex(
        index=False,
        escape=True,
        caption=re.sub(r"([&%$#_{}])", r"\\\1", table["title"]),
        label=f"tab:{name}",
        column_format="".join("l" if column.kind == "text" else "r" for column in columns),
    )
    below = [
        *table.get("findings", ()),
        legend(columns, rows),
        *(f"{number}: {note}" for note, number in notes.items()),
    ]
    said = pandas.DataFrame(below).to_latex(index=False, header=False, escape=True, column_format=r"p{\linewidth}")
    return text.removesuffix(END) + "\n" + said + END
