"""From results to rows, renderings and the page of a table, harmless whatever its texts are."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.jobs.job import Job
from experiments.jobs.revisions import made_by
from experiments.report.columns import CATALOGUE, chosen, remarks
from experiments.report.page import page, written
from experiments.report.rows import FIELDS, commands, table_json
from experiments.report.seeds import aggregate
from experiments.report.terminal import show
from experiments.report.texts import csv_text, latex, markdown
from experiments.report.write import write_report
from experiments.runner.plan import read_plan
from tests.experiments.support.synthetic import TABLE, compare, fill
from tests.support.hostile import poisoned


@pytest.fixture
def table(tmp_path: Path) -> dict[str, Any]:
    fill(tmp_path)
    return table_json(tmp_path, TABLE, read_plan(tmp_path, TABLE))


def row(table: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in table["rows"] if row["id"] == name)


def test_aggregation_by_hand() -> None:
    job = Job("m_small", True, "digits", "1297+500", "svd", 0.4, 0)

    def one(after: float, size: int, **made: Any) -> dict[str, Any]:
        return {
            "params": {"dense": 100, "compressed": size},
            "macs": None,
            "top1": {"dense": 90.0, "before": None, "after": after},
            "relative_error_held_out": 0.5,
            "trainable_share": None,
            "seconds": {"total": 2.0},
            "job": job.as_json(),
            **made_by(job),
            **made,
        }

    row = aggregate({2: one(80.0, 60), 0: one(86.0, 61), 1: one(83.0, 60)})
    assert row["top1"] == 83.0
    assert row["top1_std"] == 3.0  # sqrt((9 + 9 + 0) / 2)
    assert (row["top1_dense"], row["top1_before_finetune"], row["top1_before_std"]) == (90.0, None, None)
    assert (row["params"], row["params_dense"], row["macs"]) == (60, 100, None)
    assert (row["seeds"], row["seconds"], row["stale"]) == ([0, 1, 2], 2.0, False)
    assert aggregate({0: one(80.0, 60)})["top1_std"] is None
    assert aggregate({0: one(80.0, 60), 1: one(80.0, 60, revisions={"evaluate": 0})})["stale"] is True


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


def test_a_report_is_all_files_that_it_says(tmp_path: Path) -> None:
    fill(tmp_path)
    content = write_report(tmp_path, TABLE)
    made = {path.name for path in (tmp_path / TABLE.name).iterdir()}
    assert made == {*written(TABLE), "plan.json"}
    assert json.loads((tmp_path / TABLE.name / "table.json").read_text()) == content
    assert (tmp_path / TABLE.name / "accuracy_vs_params.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / TABLE.name / "accuracy_vs_params.pdf").read_bytes().startswith(b"%PDF")


def test_every_column_writes_every_row(table: dict[str, Any]) -> None:
    """Also those that no table shows yet."""
    columns, notes = chosen(CATALOGUE.names()), {text: 1 for row in table["rows"] for text in remarks(row)}
    for row in table["rows"]:
        for column in columns:
            text, value = column.write(row, notes, 2), column.value(row)
            assert "None" not in text
            assert value is None or isinstance(value, str if column.kind == "text" else (int, float))
    full = dict.fromkeys(FIELDS, 0.5) | {"gap": 0.031, "gap_std": 0.002, "budget": 0.05, "overhead": 0.0512, "bits": 4}
    full |= {"relative_error": 0.11, "residual_error_reported": 0.13, "file_bytes": 88_500_000, "size_reported": 84.5}
    expected = {
        "gap": "3.10 ± 0.20", "budget": "5.0", "overhead": "5.12", "bits": "4", "relative_error": "0.1100",
        "residual_error_reported": "0.13", "file_bytes": "84.4 MiB", "size_reported": "84.5", "reduction": "50%",
    }  # fmt: skip
    assert {name: CATALOGUE.get(name).write(full, {}, 2) for name in expected} == expected


def test_every_line_has_every_column_and_no_text_is_a_command(tmp_path: Path) -> None:
    fill(tmp_path)
    table = table_json(tmp_path, TABLE, read_plan(tmp_path, TABLE))
    rows = [{**row, "architecture": "a & b", "method": r"\input {x} 5%_#$"} for row in table["rows"]]
    text = latex({**table, "title": "50% }", "rows": rows}, "table9")
    head, body, below = text.split(r"\toprule")
    assert r"\caption{50\% \}}" in head
    lines = [line for line in body.splitlines() if line.endswith(r" \\")]
    assert len(lines) == 1 + len(rows)
    for line in lines:
        assert len(re.split(r"(?<!\\)&", line)) == len(table["columns"])
        assert not line.startswith(("[", "*"))  # after the end of the line above it would be its argument
    assert r"\textbackslash input \{x\} 5\%\_\#\$" in body
    assert not [line for line in below.splitlines() if line.startswith("[")]
    assert text.count(r"\end{table}") == 1


HOSTILE_TEXT = "</script><img src=x onerror=\"document.title='taken'\"><b>'&"


class Tags(HTMLParser):
    """Lists the elements of a page, and the texts of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.seen and self.seen[-1][0] in ("td", "th") and self.cells:
            self.cells[-1] += data.strip()


@pytest.fixture
def made(tmp_path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    fill(tmp_path)
    plan = read_plan(tmp_path, TABLE)
    return table_json(tmp_path, TABLE, plan), commands(TABLE, plan)


def test_the_page_has_every_cell_and_the_commands(made: tuple[dict[str, Any], dict[str, str]]) -> None:
    content, told = made
    text = page(content, told, "python -m experiments run 'table9/m/*'", ["accuracy_vs_params.png"])
    columns, cells = chosen(content["columns"]), Tags(text).cells
    assert cells[: len(columns)] == [column.header for column in columns]
    assert len(cells) == len(columns) * (1 + len(content["rows"]))
    svd = next(row for row in content["rows"] if row["id"] == "m/svd-40")
    assert {column.write(svd, {}, 2) for column in columns} <= {*cells, ""}
    assert list(told) == ["m/baseline", "m/svd-40", "m/ours-40", "m/ours-60"]  # n/svd-40 has no jobs
    assert all(command in text for command in told.values())
    assert "<p>Last run: <code>python -m experiments run &#x27;table9/m/*&#x27;</code></p>" in text
    assert "Last run" not in page(content, told, None)


def test_texts_are_not_markup(made: tuple[dict[str, Any], dict[str, str]]) -> None:
    content, told = made
    texts = ("base", "z", "solver", "optimizer", "target", "note", "source", "reason", "model", "params_printed")
    rows = [
        poisoned(row | dict.fromkeys(texts, "x"), HOSTILE_TEXT) | {"status": row["status"]}
        for row in content["rows"]
    ]  # fmt: skip
    columns = CATALOGUE.names()
    text = page(
        {"title": HOSTILE_TEXT, "columns": columns, "rows": rows, "findings": [HOSTILE_TEXT]},
        poisoned(told, HOSTILE_TEXT),
        HOSTILE_TEXT,
    )
    seen = Tags(text).seen
    assert [tag for tag, _ in seen].count("script") == 1
    assert not [tag for tag, _ in seen if tag in ("img", "b", "iframe", "object", "link")]
    assert not [names for _, names in seen if "src" in names or any(name.startswith("on") for name in names)]
