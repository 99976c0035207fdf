"""Write a table as HTML whose columns sort: ``table.html``, and the published tables of the site."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from experiments.report.columns import Column, Notes, chosen, legend, notes_of, shown_status
from experiments.report.uncertainty import Row, marked
from experiments.tables.rows import Table

LIBRARY = Path(__file__).parent / "tablesort.min.js"  # https://github.com/tristen/tablesort, MIT
START = """
Tablesort.extend("number", () => false, (a, b) => b - a);
for (const table of document.querySelectorAll("table.sortable")) new Tablesort(table);
"""
EMPTY = "-1e300"  # where a number is missing
STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { margin: 1rem auto; max-width: 90rem; padding: 0 1rem }
img { max-width: 100%; background: white }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); padding: .3rem .6rem; text-align: left }
th { cursor: pointer; white-space: nowrap }
th[aria-sort=ascending]::after { content: " \\25b4" }
th[aria-sort=descending]::after { content: " \\25be" }
[data-sort] { text-align: right; white-space: nowrap }
.skipped, .reported { opacity: .7 }
"""
RENDERED = ("table.md", "table.csv", "table.json", "table.tex", "table.html")


def written(table: Table) -> list[str]:
    """Name the files that a report of ``table`` consists of, once it has results."""
    if table.drawing is None:
        return [*RENDERED, *(f"{name}.{kind}" for name in table.pictures for kind in ("png", "pdf"))]
    return ["table.json", *(f"{table.name}.{kind}" for kind in ("json", "png", "pdf"))]


def script() -> str:
    """Return the JavaScript that sorts every table of a page."""
    return LIBRARY.read_text(encoding="utf-8") + START


def body(table: Mapping[str, Any], commands: Mapping[str, str], pictures: Sequence[str] = ()) -> str:
    """Write the table, what is said of it, and the command that repeats each row. pictures: the addresses of its plots."""
    columns, rows = chosen(table["columns"]), table["rows"]
    notes = notes_of(rows)
    heads = (
        f'<th scope="col"{" data-sort-method=number" * (column.kind == "number")}>{escape(column.header)}</th>'
        for column in columns
    )
    lines = (
        f'<tr class="{escape(shown_status(row))}">{"".join(_cell(column, row, notes) for column in columns)}</tr>'
        for row in marked(rows)
    )
    repeat = (f"<li><code>{escape(command)}</code></li>" for command in commands.values())
    parts = [
        _list("ul", map(escape, table.get("findings", ()))),
        *(f'<p><img src="{escape(picture)}" alt="{escape(Path(picture).stem)}"></p>' for picture in pictures),
        f'<div class="scroll"><table class="sortable"><thead><tr>{"".join(heads)}</tr></thead><tbody>',
        *lines,
        "</tbody></table></div>",
        f"<p>{escape(legend(columns, rows))}</p>",
        _list("ol", map(escape, notes)),
        f"<details><summary>The command of each row</summary><ul>{''.join(repeat)}</ul></details>" if commands else "",
    ]
    return "\n".join(part for part in parts if part)


def page(
    table: Mapping[str, Any], commands: Mapping[str, str], command: str | None, pictures: Sequence[str] = ()
) -> str:
    """Write ``table.html``. ``command``: the last one that ran; None where the plan does not know it."""
    title, ran = escape(table["title"]), f"<p>Last run: <code>{escape(command)}</code></p>\n" if command else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"{ran}{body(table, commands, pictures)}\n<script>{script()}</script>\n</body>\n</html>\n"
    )


def _cell(column: Column, row: Row, notes: Notes) -> str:
    text, value = column.write(row, notes, 2), column.value(row)
    sort = f' data-sort="{EMPTY if value is None else float(value)}"' if column.kind == "number" else ""
    return f"<td{sort}>{escape(text)}</td>"


def _list(kind: str, items: Any) -> str:
    lines = "".join(f"<li>{item}</li>" for item in items)
    return f"<{kind}>{lines}</{kind}>" if lines else ""
