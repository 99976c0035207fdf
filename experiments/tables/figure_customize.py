"""Figure D: what the customised models of Table D draw, beside the examples that they have seen.

Source    of this project
Command   python -m experiments run table_customize figure_customize      (they share their jobs)

The same noise for all methods: differences between rows are the methods'.
"""

from experiments.tables.rows import Table
from experiments.tables.table_customize import ROWS

TABLE = Table(
    title="Figure D: the new digit, in the style of its examples and inverted",
    rows=ROWS,
    columns=("method", "seconds", "status"),
    drawing="customize",
)
