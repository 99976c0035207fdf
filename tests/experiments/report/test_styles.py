"""One look for each method, wherever it is drawn."""

import pytest

from experiments.report.styles import COLOURS, SIZE, STYLES, known_style, series_of, styles_of
from experiments.tables.catalogue import tables
from experiments.tables.rows import Table

DRAWN = [table for table in tables().values() if table.pictures and table.drawing is None]


def test_no_two_styles_are_alike() -> None:
    assert len({(style.marker, style.name) for style in STYLES.values()}) == len(STYLES)
    assert {style.name for style in STYLES.values()} <= COLOURS.keys()


@pytest.mark.parametrize("table", DRAWN, ids=lambda t: t.name)
def test_every_method_of_a_table_has_its_own(table: Table) -> None:
    """A new method registers its look, so that it is the same beside whatever it is drawn."""
    panels: dict[str, dict[str, None]] = {}
    for row in table.runnable:
        if row.protocol != "dense":
            panels.setdefault(row.architecture, {})[series_of({"method": row.method, "bits": row.bits})] = None
    assert panels
    for names in panels.values():
        assert [name for name in names if known_style(name) is None] == []
        assert len(set(styles_of(list(names)).values())) == len({name.removesuffix(SIZE) for name in names})
