"""From results to rows and renderings."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgba
from rich.console import Console

from experiments.jobs.job import Job
from experiments.jobs.revisions import made_by
from experiments.report.cells import remarks
from experiments.report.columns import CATALOGUE, DEFAULT, chosen
from experiments.report.files import written
from experiments.report.formats import human, share
from experiments.report.markdown import csv_text, markdown
from experiments.report.plots import PALE, draw_plot
from experiments.report.rows import FIELDS, table_json
from experiments.report.seeds import aggregate, numbers
from experiments.report.terminal import show
from experiments.report.write import write_report
from experiments.runner.plan import PLAN, Options, jobs_of, read_plan
from experiments.tables.catalogue import tables
from experiments.tables.rows import Row
from lowrank_vit import InputError
from tests.experiments.support.synthetic import TABLE, compare, fill, result, write


@pytest.mark.parametrize(("kept", "divergence"), [({}, 0.4), ({"kept": "before"}, 0.3)])
def test_a_distilled_row_has_the_divergence_of_its_weights(kept: dict[str, str], divergence: float) -> None:
    distillation = {"kl_held_out": {"before": 0.3, "after": 0.4}, **kept}
    assert numbers({"distillation": distillation}) == {"kl_unseen": divergence}
    assert numbers({"distillation": {**distillation, "kl_held_out": None}}) == {}


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


def test_csv_is_as_it_was(table: dict[str, Any]) -> None:
    compare("table9.csv", csv_text(table))


def test_the_terminal_is_as_it_was(table: dict[str, Any]) -> None:
    console = Console(file=io.StringIO(), width=140)
    show(table, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    compare("table9.txt", "\n".join(line.rstrip() for line in text.splitlines()) + "\n")


@pytest.mark.parametrize("count", [3, 4])
def test_many_rows_skipped_for_one_reason_share_a_line(table: dict[str, Any], count: int) -> None:
    *rest, skipped = table["rows"]
    assert skipped["status"] == "skipped"
    console = Console(file=io.StringIO(), width=140)
    show({**table, "rows": [*rest, *(skipped | {"id": f"n/{index}"} for index in range(count))]}, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("4 rows" in text) == (count == 4)
    assert text.count("no stand-in for Model-N") == 1
    number = re.search(r"\[(\d+)\] no stand-in for Model-N", text)
    assert number is not None
    assert text.count(f"skipped [{number[1]}]") == (1 if count == 4 else 3)


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


def test_the_plot_shows_what_was_measured(table: dict[str, Any]) -> None:
    figure = draw_plot(table)
    assert [axes.get_title() for axes in figure.axes] == ["Model-M: m_small"]
    points = {
        (round(x, 1), y) for line in figure.axes[0].lines for x, y in line.get_xydata() if len(line.get_xydata()) == 1
    }
    assert {(26.0, 95.5), (15.6, 81.5), (15.6, 71.5), (15.6, 90.0), (15.6, 85.0)} <= points
    empty = draw_plot({**table, "rows": [row for row in table["rows"] if row["status"] == "reported"]})
    assert not empty.axes


def test_a_report_shows_the_command_that_ran(table: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / TABLE.name / PLAN
    plan = json.loads(path.read_text())
    for command in ("python -m experiments run 'table9/m/*' --seeds 0,1", None):  # None: an earlier version's plan
        path.write_text(json.dumps(plan if command is None else {**plan, "command": command}))
        write_report(tmp_path, TABLE)
        assert ("python -m experiments run 'table9/m/*'" in (path.parent / "table.md").read_text()) == bool(command)


def test_one_seed_is_drawn_as_one(table: dict[str, Any]) -> None:
    """Pale, marked in the legend; and its own dense model is no second star beside the mean's."""
    figure = draw_plot(table)
    (panel,), (legend,) = figure.axes, figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert "Ours (paper) (n=1)" in texts
    assert "Vanilla SVD + FT" in texts
    assert "500 images" in legend.get_title().get_text()
    assert [line.get_ydata()[0] for line in panel.lines if line.get_marker() == "*"] == [95.5]
    opacity = {}
    for line in panel.lines:
        if line.get_marker() in ("s", "^") and line.get_markerfacecolor() != "white":
            opacity[line.get_marker()] = to_rgba(line.get_markerfacecolor())[3]
    assert opacity == {"s": 1.0, "^": PALE}


def test_a_report_is_all_files_that_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.tables.catalogue.tables", lambda: {TABLE.name: TABLE})
    fill(tmp_path)
    content = write_report(tmp_path, TABLE)
    made = {path.name for path in (tmp_path / TABLE.name).iterdir()}
    assert made == {*written(TABLE), "plan.json"}
    assert json.loads((tmp_path / TABLE.name / "table.json").read_text()) == content
    index = (tmp_path / "index.html").read_text()
    assert index.index('href="table9/table.html"') < index.index('href="table9/table.md"')
    assert (tmp_path / TABLE.name / "accuracy_vs_params.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / TABLE.name / "accuracy_vs_params.pdf").read_bytes().startswith(b"%PDF")


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
    rows = table_json(tmp_path, TABLE, read_plan(tmp_path, TABLE))
    assert row(rows, "m/ours-40")["protocol"] == "partial-ft, 1 epoch, 7 steps"
    assert row(rows, "m/svd-40")["protocol"] == "partial-ft, 1 epoch"
    assert row(rows, "m/baseline")["protocol"] == "dense"


def test_what_a_table_says_of_z_and_of_files(tmp_path: Path) -> None:
    fill(tmp_path)
    plan = read_plan(tmp_path, TABLE)
    ours = next(row for row in TABLE.runnable if row.id == "m/svd-40")
    changed = replace(
        ours, changes={"compensation": "low_rank", "budget": 0.1}, bits=8, target="t", standin_target="s",
        printed={"residual_error_reported": 0.13, "size_reported": 84},
    )  # fmt: skip
    jobs = jobs_of(plan["rows"]["m/svd-40"])
    for job, gap, size in zip(jobs, (0.02, 0.04), (2_000_000, 2_000_001), strict=True):
        z = {"kind": "low_rank", "overhead": 0.05, "loss": 3.0, "gap": gap}
        write(tmp_path, job, result(job, "new", 80.0, z=z, file_bytes=size, relative_error=0.25 + gap))
    renewed = replace(TABLE, rows=(changed,), columns=("method", "base", "z", "solver", "gap", "file_bytes", "target"))
    content = table_json(tmp_path, renewed, plan)
    row = content["rows"][0]
    assert tuple(row) == FIELDS
    assert content["columns"] == list(renewed.columns)
    told = {name: row[name] for name in ("base", "z", "solver", "budget", "bits", "target", "file_bytes")}
    assert told == {
        "base": "svd",
        "z": None,
        "solver": None,
        "budget": None,
        "bits": 8,
        "target": "s",
        "file_bytes": 2_000_000,
    }
    assert (row["overhead"], row["gap"], row["relative_error"]) == (0.05, pytest.approx(0.03), pytest.approx(0.28))
    assert row["gap_std"] == pytest.approx(0.02 / sqrt(2))
    assert (row["residual_error_reported"], row["size_reported"]) == (0.13, 84)
    skipped = table_json(tmp_path, renewed, {**plan, "rows": {}})["rows"][0]
    assert (skipped["z"], skipped["solver"], skipped["budget"], skipped["target"]) == (
        "low_rank",
        "closed_form",
        0.1,
        "t",
    )


def test_every_column_writes_every_row(table: dict[str, Any]) -> None:
    """Also those that no table shows yet."""
    columns, notes = chosen(list(CATALOGUE)), {text: 1 for row in table["rows"] for text in remarks(row)}
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
    assert {name: CATALOGUE[name].write(full, {}, 2) for name in expected} == expected


def test_a_table_chooses_its_columns(table: dict[str, Any]) -> None:
    content = {**table, "columns": ["method", "gap", "status"]}
    assert "| Method | Gap % | Status |" in markdown(content, "run")
    console = Console(file=io.StringIO(), width=100)
    show(content, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Vanilla SVD + FT" in text
    assert "Model-M" not in text
    assert "Gap: by how many percent" in " ".join(text.split())
    assert table["columns"] == list(DEFAULT)
    with pytest.raises(InputError, match="did you mean 'method'"):
        chosen(["methd"])


def test_the_tables_here_ask_for_what_there_is() -> None:
    known = tables()
    assert known
    for table in known.values():
        chosen(table.columns)
        for row in table.rows:
            assert not isinstance(row, Row) or set(row.printed) <= set(FIELDS), row.id


def test_a_bar_in_a_name_ends_no_cell(table: dict[str, Any]) -> None:
    rows = [{**row, "method": "a|b\nc"} for row in table["rows"]]
    lines = [line for line in markdown({**table, "rows": rows}, "run").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
    assert lines[2].startswith("| Model-M | a\\|b c | dense |")
