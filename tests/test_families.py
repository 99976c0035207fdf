"""The page of families says what the code does."""

import pytest

pytest.importorskip("transformers")

from tests.families import PAGE, page


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    """``python -m tests.families`` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()
