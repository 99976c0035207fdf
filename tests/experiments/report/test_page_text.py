"""The text of the page, without a browser: whole, harmless, and as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from experiments.report.details import details
from experiments.report.page import ASSETS, page, page_data, write_index
from experiments.report.rows import table_json
from experiments.runner.plan import read_plan
from tests.experiments.support import page_table
from tests.experiments.support.synthetic import TABLE, compare, fill


class Tags(HTMLParser):
    """Counts the elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


@pytest.mark.parametrize("made", [page_table.hostile, page_table.hostile_everywhere])
def test_the_text_of_the_page_is_harmless_and_whole(made: Callable[[], tuple[dict[str, Any], Any]]) -> None:
    """No element comes from the data, nothing from elsewhere, and the data are what they were."""
    content, details = made()
    text = page(content, details, False, page_table.HOSTILE)
    seen = Tags(text).seen
    assert [tag for tag, _ in seen].count("script") == 2
    assert not [tag for tag, _ in seen if tag in ("img", "b", "iframe", "object")]
    assert [attributes["href"] for tag, attributes in seen if tag == "link"] == ["data:,"]
    assert not [
        attributes for _, attributes in seen if "src" in attributes or any(name.startswith("on") for name in attributes)
    ]
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert json.loads(data[1]) == page_data(content, details, False)


def test_findings_are_shown_as_text() -> None:
    text = page(page_table.content(findings=["one <b>finding</b>"]), {}, False, "run")
    assert "<li>one &lt;b&gt;finding&lt;/b&gt;</li>" in text


def test_a_panel_is_named_by_the_model_that_is_compressed() -> None:
    """Not by the smaller one that was trained at this size, which comes first in Table 3."""
    rows = [
        page_table.row("x/small", "X", "trained", model="small", protocol="dense", params=5, top1=90.0),
        page_table.measured("x/svd", "X", "SVD", 40, 80.0, model="large", target="small"),
    ]
    assert page_data(page_table.content(rows=rows), {}, False)["models"] == {"X": "large at the size of small"}


def test_the_header_shows_the_command_that_ran() -> None:
    said = "python -m experiments run 'table9/m/*' --seeds 0"
    for command, expected in ((said, ["python -m experiments run &#39;table9/m/*&#39; --seeds 0"]), (None, [])):
        text = page(page_table.content(), {}, False, command)
        assert re.findall(r"<p>Last run: <code>(.*)</code></p>", text) == expected


def test_the_embedded_data_are_as_they_were(tmp_path: Path) -> None:
    fill(tmp_path)
    plan = read_plan(tmp_path, TABLE)
    data = page_data(table_json(tmp_path, TABLE, plan), details(tmp_path, TABLE, plan), False)
    compare("table9.page.json", json.dumps(data, indent=1) + "\n")


def test_the_body_of_the_table_is_as_it_was(tmp_path: Path) -> None:
    fill(tmp_path)
    plan = read_plan(tmp_path, TABLE)
    text = page(table_json(tmp_path, TABLE, plan), details(tmp_path, TABLE, plan), False, "run")
    compare("table9.html", text[text.index('<table class="rows">') : text.index("</table>")] + "</table>\n")


def test_the_index_links_what_is_there(tmp_path: Path) -> None:
    write_index(tmp_path)
    assert "Nothing was rendered yet" in (tmp_path / "index.html").read_text()
    (tmp_path / "table2").mkdir()
    (tmp_path / "table2" / "table.json").write_text('{"title": "Two < three"}')
    (tmp_path / "table2" / "table.html").write_text("")
    write_index(tmp_path)
    text = (tmp_path / "index.html").read_text()
    links = [attributes["href"] for tag, attributes in Tags(text).seen if tag == "a"]
    assert links == ["table2/table.html", "table2/table.html", "table2/table.json"]
    assert "Two &lt; three" in text


def test_the_script_needs_nothing_from_elsewhere() -> None:
    for name in ("page.js", "page.css"):
        text = (ASSETS / name).read_text(encoding="utf-8")
        assert not re.search(r"fetch\(|XMLHttpRequest|import[ (]|@import|url\(|innerHTML|eval\(", text), name
