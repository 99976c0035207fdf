"""What a table names is there to be drawn and said."""

from __future__ import annotations

import json

import pytest

from experiments.report.pictures import DRAWINGS, PICTURES
from experiments.report.plots import FRONT
from experiments.report.render import PUBLISHED
from experiments.report.rows import FINDINGS
from experiments.tables.catalogue import tables
from experiments.tables.rows import Table


@pytest.mark.parametrize("table", tables().values(), ids=lambda table: table.name)
def test_every_name_is_known(table: Table) -> None:
    assert set(table.pictures) <= PICTURES.keys()
    assert table.drawing is None or table.drawing in DRAWINGS
    assert table.findings is None or table.findings in FINDINGS


def test_every_picture_is_used() -> None:
    assert {name for table in tables().values() for name in table.pictures} == PICTURES.keys()
    assert {table.drawing for table in tables().values()} - {None} == DRAWINGS.keys()


def test_the_front_counts_models_that_are_not_trained() -> None:
    """Beside trained rows they are drawn hollow; the front ran below them."""
    content = json.loads((PUBLISHED / "imagenet-samples" / "table_rivals.json").read_text(encoding="utf-8"))
    rows = [row for row in content["rows"] if row["status"] == "done" and row["cost"] == "parameters"]
    assert any(row["top1_before_finetune"] is not None for row in rows)
    (panel,) = PICTURES["front_vs_params"](content).axes
    (front,) = [line for line in panel.lines if line.get_linewidth() == FRONT["linewidth"]]
    corners = dict(front.get_xydata())
    for row in rows:
        within = [top1 for size, top1 in corners.items() if size <= row["params"] / 1e6]
        assert row["top1"] <= max(within), row["id"]
