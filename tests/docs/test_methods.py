"""The tables of methods and families say what the code has, and leave nothing out."""

import pytest

from lowrank_vit import RECIPES
from tests.method_pages import pages, render, slots


def test_the_pages_are_up_to_date() -> None:
    """``python -m tests.method_pages`` writes them."""
    texts = {page.stem: page.read_text(encoding="utf-8") for page in pages()}
    assert [name for name, text in texts.items() if text != render(text)] == []


def test_every_method_and_recipe_is_on_a_page() -> None:
    texts = "\n".join(page.read_text(encoding="utf-8") for page in pages())
    names = {name for methods in slots().values() for name in methods} | set(RECIPES)
    assert len(names) > 40
    assert [name for name in sorted(names) if f"| `{name}` |" not in texts] == []


@pytest.mark.slow
def test_the_page_of_families_is_up_to_date() -> None:
    """``python -m tests.families`` writes it."""
    pytest.importorskip("transformers")
    from tests.families import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page()
