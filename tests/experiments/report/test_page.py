"""The page of a table: every cell, harmless whatever the texts are, and sorted by values in a browser."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from experiments.report.columns import CATALOGUE, chosen
from experiments.report.page import page
from experiments.report.rows import commands, table_json
from experiments.runner.plan import read_plan
from tests.experiments.support.synthetic import TABLE, fill
from tests.support.markup import poisoned

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><b>'&"


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
        poisoned(row | dict.fromkeys(texts, "x"), HOSTILE) | {"status": row["status"]}
        for row in content["rows"]
    ]  # fmt: skip
    columns = list(CATALOGUE)
    text = page(
        {"title": HOSTILE, "columns": columns, "rows": rows, "findings": [HOSTILE]}, poisoned(told, HOSTILE), HOSTILE
    )
    seen = Tags(text).seen
    assert [tag for tag, _ in seen].count("script") == 1
    assert not [tag for tag, _ in seen if tag in ("img", "b", "iframe", "object", "link")]
    assert not [names for _, names in seen if "src" in names or any(name.startswith("on") for name in names)]
