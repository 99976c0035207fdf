r"""Write a table as LaTeX: a ``table`` environment to ``\input`` where the preamble loads booktabs."""

import re
from collections.abc import Mapping
from typing import Any

from experiments.report.cells import notes_of
from experiments.report.columns import chosen, legend
from experiments.report.uncertainty import marked

ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # after a line's end it would begin an argument, and * would be part of the command
    "]": "{]}",
    "*": "{*}",
    "±": r"\ensuremath{\pm}",
    "²": r"\textsuperscript{2}",
    "·": r"\textperiodcentered{}",
    "\u00d7": r"\ensuremath{\times}",
    "\u2212": r"\ensuremath{-}",
    **{letter: rf"\{letter}" for letter in "{}$&#_%"},
}
LIGATURES = re.compile(r"(?<=-)(?=-)|(?<=')(?=')|(?<=[?!])(?=\\textasciigrave)|(?<=,)(?=,)")
FRAME = r"""%% \usepackage{booktabs} in the preamble; a wide table needs table* or a landscape page
\begin{table}
  \centering
  \caption{%s}
  \label{tab:%s}
  \scriptsize
  \setlength{\tabcolsep}{3pt}
  \begin{tabular}{%s}
    \toprule
%s
    \bottomrule
  \end{tabular}
  \par\medskip
  \begin{minipage}{\linewidth}
    \footnotesize
%s
  \end{minipage}
\end{table}
"""


def escape(text: str) -> str:
    r"""Escape text for LaTeX; blanks and control characters are single blanks, and no ligatures form.

    >>> print(escape("5% & a_b --rerun"))
    5\% \& a\_b -{}-rerun
    """
    words = "".join(letter if letter.isprintable() else " " for letter in text).split()
    escaped = "".join(ESCAPES.get(letter, letter) for letter in " ".join(words))
    return LIGATURES.sub("{}", escaped)


def latex(table: Mapping[str, Any], name: str) -> str:
    """Write ``table.tex``; rules part the architectures, notes stand below."""
    columns, rows = chosen(table["columns"]), table["rows"]
    notes = notes_of(rows)
    lines, above = [_line([column.header for column in columns]), r"    \midrule"], None
    for row in marked(rows):
        if above not in (None, row["architecture"]):
            lines.append(r"    \midrule")
        above = row["architecture"]
        lines.append(_line([column.write(row, notes, 2) for column in columns]))
    below = [
        *table.get("findings", ()),
        legend(columns, rows),
        *(f"[{number}] {text}" for text, number in notes.items()),
    ]
    alignment = "".join("l" if column.kind == "text" else "r" for column in columns)
    paragraphs = "\\par\n".join(f"    {escape(text)}" for text in below)
    return FRAME % (escape(table["title"]), name, alignment, "\n".join(lines), paragraphs)


def _line(cells: list[str]) -> str:
    return f"    {' & '.join(map(escape, cells))} \\\\"
