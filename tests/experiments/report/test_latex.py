"""LaTeX whose texts are no commands: there is no TeX here."""

import re
from pathlib import Path

import pytest

from experiments.report.latex import escape, latex
from experiments.report.rows import table_json
from experiments.runner.plan import read_plan
from tests.experiments.support.synthetic import TABLE, fill


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("5% & a_b --rerun", r"5\% \& a\_b -{}-rerun"),
        ("[2pt] *", "{[}2pt{]} {*}"),
        ("a\n\\b {c}$#", r"a \textbackslash{}b \{c\}\$\#"),
        ("~^<>|\"`±", "".join(rf"\text{name}{{}}" for name in ("asciitilde", "asciicircum", "less", "greater", "bar"))
         + r"{\char34}\textasciigrave{}\ensuremath{\pm}"),
    ],
)  # fmt: skip
def test_text_is_printed_as_it_is(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_every_line_has_every_column(tmp_path: Path) -> None:
    fill(tmp_path)
    table = table_json(tmp_path, TABLE, read_plan(tmp_path, TABLE))
    rows = [{**row, "architecture": "[2pt] a & b", "method": "* \\ {"} for row in table["rows"]]
    text = latex({**table, "title": "50% }", "rows": rows}, "table9")
    lines = [line.strip() for line in text.splitlines() if line.endswith(r" \\")]
    assert len(lines) == 1 + len(rows)
    for line in lines:
        assert len(re.split(r"(?<!\\)&", line)) == len(table["columns"])
        assert not re.match(r"[\[*]", line)  # after the end of the line above it would be its argument
