"""LaTeX that TeX can read: there is no TeX here, so a small reader of its tokens stands in."""

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from experiments.report.latex import escape, latex
from experiments.report.rows import table_json
from experiments.runner.plan import read_plan
from tests.experiments.support.synthetic import TABLE, fill

NAMES = {
    "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">",
    "textbar": "|", "textasciigrave": "`", "textperiodcentered": "·", "pm": "±", "times": "\u00d7", "ensuremath": "",
}  # fmt: skip
TOKEN = re.compile(r"\\([a-zA-Z]+)|\\(.)|([{}])|([^\\{}])", re.DOTALL)
NASTY = st.text(st.sampled_from(list("\\{}$&#_%~^<>|\"'`[]*-,?!± ·ab\n")), max_size=30)
TEXTS = st.one_of(NASTY, st.text(max_size=30))


def read(text: str) -> str:
    """What TeX would print of escaped text; fails on a token that would do something else."""
    printed, depth = "", 0
    text = text.replace(r"{\char34}", '"').replace(r"\ensuremath{-}", "\u2212").replace(r"\textsuperscript{2}", "²")
    for name, symbol, brace, letter in TOKEN.findall(text):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        assert depth >= 0, "a brace closes nothing"
        assert not letter or letter not in "$&#_%~^\n", f"{letter!r} is not escaped"
        printed += NAMES[name] if name else symbol or letter
    assert depth == 0, "a brace stays open"
    return printed


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("results")
    fill(folder)
    return table_json(folder, TABLE, read_plan(folder, TABLE))


@given(TEXTS)
def test_text_is_printed_as_it_is(text: str) -> None:
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    assert read(escape(text)) == " ".join(shown.split())


@given(TEXTS, TEXTS, TEXTS)
@example("[2pt]", "a note", "a title")
@example("*", "a note", "a title")
def test_environments_and_cells_are_balanced_whatever_the_texts(
    table: dict[str, Any], method: str, note: str, title: str
) -> None:
    rows = [{**row, "architecture": method, "method": method, "note": note} for row in table["rows"]]
    text = latex({**table, "title": title, "rows": rows}, "table9")
    open_environments = []
    for what, name in re.findall(r"\\(begin|end)\{([a-z]+)\}", text):
        if what == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert not open_environments
    lines = [line.strip() for line in text.splitlines() if line.endswith(r" \\")]
    assert len(lines) == 1 + len(rows)
    for line in lines:
        cells = re.split(r"(?<!\\)&", line.removesuffix(r"\\"))
        assert len(cells) == len(table["columns"])
        assert not re.match(r"[\[*]", line)  # after the end of the line above it would be its argument
        for cell in cells:
            read(cell)
