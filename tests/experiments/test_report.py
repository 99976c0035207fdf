"""From results to rows and renderings."""

from __future__ import annotations

import csv
import io
import json
import os
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.plan import Options
from experiments.plots import save_plot
from experiments.report import csv_text, human, markdown, share
from experiments.results import FIELDS, aggregate, read_plan, table_json
from experiments.terminal import show
from lowrank_vit import InputError
from tests.experiments.synthetic import TABLE, fill

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def table(tmp_path: Path) -> dict[str, Any]:
    fill(tmp_path)
    return table_json(tmp_path, TABLE, read_plan(tmp_path, TABLE), "new")


def row(table: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in table["rows"] if row["id"] == name)


def compare(name: str, text: str) -> None:
    """``UPDATE_GOLDEN=1`` writes the file instead."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_aggregation_by_hand() -> None:
    def one(after: float, size: int) -> dict[str, Any]:
        return {
            "params": {"dense": 100, "compressed": size},
            "macs": None,
            "top1": {"dense": 90.0, "before": None, "after": after},
            "relative_error_held_out": 0.5,
            "trainable_share": None,
            "seconds": {"total": 2.0},
            "provenance": {"source": "s"},
        }

    row = aggregate({2: one(80.0, 60), 0: one(86.0, 61), 1: one(83.0, 60)}, "s")
    assert row["top1"] == 83.0
    assert row["top1_std"] == 3.0  # sqrt((9 + 9 + 0) / 2)
    assert (row["top1_dense"], row["top1_before_finetune"], row["top1_before_std"]) == (90.0, None, None)
    assert (row["params"], row["params_dense"], row["macs"]) == (60, 100, None)
    assert (row["seeds"], row["seconds"], row["stale"]) == ([0, 1, 2], 2.0, False)
    assert aggregate({0: one(80.0, 60)}, "s")["top1_std"] is None


def test_rows_of_the_json(table: dict[str, Any]) -> None:
    assert table["title"] == "Table 9: made up · digits stand-in, not ImageNet"
    assert table["profile"] == "embedded"
    assert [row["id"] for row in table["rows"]] == [row.id for row in TABLE.rows]
    assert all(tuple(row) == FIELDS for row in table["rows"])
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    other = row(table, "m/other")
    assert (other["status"], other["top1_reported"], other["top1"], other["source"]) == (
        "reported", 81.28, None, "Some authors",
    )  # fmt: skip
    svd = row(table, "m/svd-40")
    assert (svd["status"], svd["top1"], svd["seeds"], svd["stale"]) == ("done", 81.5, [0, 1], False)
    assert svd["top1_std"] == pytest.approx(3 / sqrt(2))
    assert row(table, "m/baseline")["top1"] == row(table, "m/baseline")["top1_dense"] == 95.5


def test_what_went_wrong_is_told(table: dict[str, Any]) -> None:
    half = row(table, "m/ours-40")
    assert (half["status"], half["seeds"], half["reason"]) == ("done", [0], "seed 1: failed: a layer has NaN")
    never = row(table, "m/ours-60")
    assert (never["status"], never["reason"]) == ("skipped", "not run yet")
    skipped = row(table, "n/svd-40")
    assert skipped["status"] == "skipped"
    assert "no stand-in" in skipped["reason"]


def test_stale_results_are_marked_everywhere(table: dict[str, Any]) -> None:
    assert row(table, "m/ours-40")["stale"] is True
    line = next(line for line in markdown(table, "run").splitlines() if "Ours (paper)" in line)
    assert "stale" in line
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert [row["id"] for row in rows if row["stale"] == "True"] == ["m/ours-40"]
    console = Console(file=io.StringIO(), width=140)
    show(table, console)
    assert "stale" in console.file.getvalue()  # type: ignore[attr-defined]


def test_markdown_is_as_it_was(table: dict[str, Any]) -> None:
    compare("table9.md", markdown(table, "python -m experiments run table9"))


def test_csv_is_as_it_was(table: dict[str, Any]) -> None:
    compare("table9.csv", csv_text(table))


def test_the_terminal_is_as_it_was(table: dict[str, Any]) -> None:
    console = Console(file=io.StringIO(), width=140)
    show(table, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    compare("table9.txt", "\n".join(line.rstrip() for line in text.splitlines()) + "\n")


@pytest.mark.parametrize("width", [120, 160])
def test_no_number_is_cut_off_in_the_terminal(table: dict[str, Any], width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    show(table, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for number in ("52.0M (-40%)", "15.6k (-40.0%)", "81.5 ±2.1", "0.1050"):
        assert number in text


def test_markdown_has_a_cell_for_every_column(table: dict[str, Any]) -> None:
    lines = [line for line in markdown(table, "run").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(TABLE.rows)
    assert len({line.count("|") for line in lines}) == 1


def test_the_plot_is_written(table: dict[str, Any], tmp_path: Path) -> None:
    save_plot(tmp_path / "plot.png", table)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    empty = {**table, "rows": [row for row in table["rows"] if row["status"] == "reported"]}
    save_plot(tmp_path / "empty.png", empty)
    assert (tmp_path / "empty.png").stat().st_size > 1000


def test_counts_in_words() -> None:
    assert [human(count) for count in (None, 640, 8912, 51_943_210, 17_580_000_000)] == [
        "", "640", "8.91k", "51.9M", "17.6G",
    ]  # fmt: skip
    assert share(60, 100) == "60 (-40.0%)"
    assert share(100, 100) == "100"


def test_a_table_that_was_never_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="python -m experiments run table9"):
        read_plan(tmp_path, TABLE)


def test_overrides_are_in_the_table(tmp_path: Path) -> None:
    fill(tmp_path, Options(epochs=1, steps=7))
    rows = table_json(tmp_path, TABLE, read_plan(tmp_path, TABLE), "new")
    assert row(rows, "m/ours-40")["protocol"] == "partial-ft, 1 epoch, 7 steps"
    assert row(rows, "m/svd-40")["protocol"] == "partial-ft, 1 epoch"
    assert row(rows, "m/baseline")["protocol"] == "dense"
