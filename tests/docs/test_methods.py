"""The tables of methods say what the code has, and leave nothing out."""

from pathlib import Path

import pytest

from lowrank_vit import RECIPES
from tests.method_pages import pages, render, slots


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_a_page_is_up_to_date(page: Path) -> None:
    """``python -m tests.method_pages`` writes it."""
    text = page.read_text(encoding="utf-8")
    assert text == render(text)


def test_every_method_and_recipe_is_on_a_page() -> None:
    texts = "\n".join(page.read_text(encoding="utf-8") for page in pages())
    names = {name for methods in slots().values() for name in methods} | set(RECIPES)
    assert len(names) > 40
    assert [name for name in sorted(names) if f"| `{name}` |" not in texts] == []
