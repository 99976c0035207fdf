"""LaTeX whose texts are no commands: there is no TeX here."""

import re
from pathlib import Path

from experiments.report.rows import table_json
from experiments.report.texts import latex
from experiments.runner.plan import read_plan
from tests.experiments.support.synthetic import TABLE, fill


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
