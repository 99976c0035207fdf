"""The tables of methods say what the code has, and leave nothing out."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowrank_vit import RECIPES
from tests.methods import BAR, NORM, pages, render, row, slots


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_a_page_is_up_to_date(page: Path) -> None:
    """``python -m tests.methods`` writes it."""
    text = page.read_text(encoding="utf-8")
    assert text == render(text)


def test_every_method_and_recipe_is_on_a_page() -> None:
    texts = "\n".join(page.read_text(encoding="utf-8") for page in pages())
    names = {name for methods in slots().values() for name in methods} | set(RECIPES)
    assert len(names) > 40
    assert [name for name in sorted(names) if f"| `{name}` |" not in texts] == []


def test_each_slot_has_a_table_beside_its_method() -> None:
    """On the page of the family, not only among all settings."""
    texts = "\n".join(page.read_text(encoding="utf-8") for page in pages() if page.stem != "settings")
    assert [slot for slot in slots() if f"| `{slot}` |" not in texts] == ["objective"]


def test_bars_end_no_cell() -> None:
    cells = row("`||x|| + |y|`", "z")
    assert cells.count("|") == 3
    assert cells == f"| `{NORM}x{NORM} + {BAR}y{BAR}` | z |"
