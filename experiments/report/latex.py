r"""Write a table as LaTeX: a ``table`` environment to ``\input`` where the preamble loads booktabs."""

import re
from collections.abc import Mapping
from typing import Any

from experiments.report.cells import notes_of
from experiments.report.columns import chosen, legend
from experiments.report.uncertainty import marked

END = "\\end{table}\n"


def latex(table: Mapping[str, Any], name: str) -> str:
    """Write ``table.tex``: the table, and below it what is said of it."""
    import pandas

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
