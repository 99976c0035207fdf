"""One look for each method, wherever it is drawn."""

from __future__ import annotations

import pytest

from experiments.report import ablation
from experiments.report.drawing import panels
from experiments.report.styles import COLOURS, SIZE, STYLES, known_style, series_of, styles_of
from experiments.tables.catalogue import tables
from experiments.tables.rows import Table

DRAWN = [table for table in tables().values() if table.pictures and table.drawing is None]


def test_no_two_styles_are_alike() -> None:
    assert len({(style.marker, style.name) for style in STYLES.values()}) == len(STYLES)
    assert {style.name for style in STYLES.values()} <= COLOURS.keys()


@pytest.mark.parametrize("table", DRAWN, ids=lambda t: t.name)
def test_every_method_of_a_table_has_its_own(table: Table) -> None:
    """A new method registers its look, so that it is the same beside whatever it is drawn."""
    panels: dict[str, dict[str, None]] = {}
    for row in table.runnable:
        if row.protocol != "dense":
            panels.setdefault(row.architecture, {})[series_of({"method": row.method, "bits": row.bits})] = None
    assert panels
    for names in panels.values():
        assert [name for name in names if known_style(name) is None] == []
        assert len(set(styles_of(list(names)).values())) == len({name.removesuffix(SIZE) for name in names})


@pytest.mark.parametrize(
    "names",
    [
        ("Ours (loss_aware)", "Two-sided, ranks by loss (loss_aware)", "-50% (loss_aware)", "loss_aware"),
        ("Beyond (best)", "+ outputs refitted (best)", "-50% (best)"),
        ("Vanilla SVD + FT", "Vanilla SVD + FT, printed size", "svd"),
        ("Whitened, uniform (SVD-LLM)", "svd_llm"),
    ],
)
def test_one_method_under_many_names_is_one(names: tuple[str, ...]) -> None:
    assert len({known_style(name) for name in names}) == 1
    assert known_style(names[0]) is not None


def test_what_trains_further_is_another_method() -> None:
    names = ("Beyond (best)", "Beyond (best), full FT", "+ distilled (best)")
    assert len({known_style(name) for name in names}) == 3


def test_unknown_methods_take_what_is_free() -> None:
    names = ["Ours (exact)", *(f"new {number}" for number in range(40))]
    chosen = styles_of(names)
    assert len({(style.marker, style.name) for style in chosen.values()}) == 41
    assert chosen["Ours (exact)"] == STYLES["exact"]
    taken = {(style.marker, style.name) for style in STYLES.values()}
    assert all((chosen[name].marker, chosen[name].name) not in taken for name in names[1:])


def test_figures_take_the_same() -> None:
    assert STYLES["svd"].mpl == panels.SVD
    assert STYLES["exact"].mpl == panels.WHITENED
    assert {kind: STYLES[f"{label}, representative"] for kind, label in ablation.LABELS.items()} == ablation.STYLES
