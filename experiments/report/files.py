"""Name the files that a report consists of."""

from experiments.tables.rows import Table

RENDERED = ("table.md", "table.csv", "table.json", "table.tex", "table.html")


def written(table: Table) -> list[str]:
    """Name the files that a report of ``table`` consists of, once it has results."""
    if table.drawing is None:
        return [*RENDERED, *(f"{name}.{kind}" for name in table.pictures for kind in ("png", "pdf"))]
    return ["table.json", *(f"{table.name}.{kind}" for kind in ("json", "png", "pdf"))]
