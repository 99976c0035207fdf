"""What a table names is there to be drawn and said."""

import pytest

from experiments.report.pictures import DRAWINGS, PICTURES
from experiments.report.rows import FINDINGS
from experiments.tables.catalogue import tables
from experiments.tables.rows import Table


@pytest.mark.parametrize("table", tables().values(), ids=lambda table: table.name)
def test_every_name_is_known(table: Table) -> None:
    assert set(table.pictures) <= PICTURES.keys()
    assert table.drawing is None or table.drawing in DRAWINGS
    assert table.findings is None or table.findings in FINDINGS
